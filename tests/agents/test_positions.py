"""What an agent tells its core of each step, and a core that gives the policy's parameters itself."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from rl2meta.agents.cores.core import Output, Seen
from rl2meta.agents.ppo import PPO, ActorCritic, PPOAgent
from rl2meta.agents.ppo_config import PPOConfig
from rl2meta.learner_state import seeded
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.trial import Trial

SHOWN = ("observation", "action", "reward", "first", "previous_observation", "episode_step")


@dataclass
class Notebook:
    """What a core was asked."""

    begun: list[tuple[int, int | None]] = field(default_factory=list)
    steps: list[Seen] = field(default_factory=list)
    trials: list[Seen] = field(default_factory=list)


class Recorder(nn.Module):
    """Reads the step at hand alone, gives the policy's logits itself, and notes what it is shown."""

    out_features = 5
    gives_parameters = True

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(self.out_features, 2)
        self.notebook = Notebook()

    def begin(self, rows: int, steps: int | None) -> int:
        self.notebook.begun.append((rows, steps))
        return 0

    def step(self, seen: Seen, state: int) -> tuple[Output, int]:
        assert state == seen.trial_step
        self.notebook.steps.append(seen)
        return self._read(seen), state + 1

    def forward(self, seen: Seen) -> Output:
        self.notebook.trials.append(seen)
        return self._read(seen)

    def _read(self, seen: Seen) -> Output:
        counts = [seen.episode_step, seen.trial_step.expand_as(seen.first), seen.first, seen.reward]
        features = torch.stack([count.float() for count in counts], dim=-1)  # [..., 4]
        features = torch.cat([features, seen.previous_observation], dim=-1)
        return Output(features, self.layer(features / 10))


@pytest.fixture
def acted(corridor: Any) -> tuple[ActorCritic, Recorder, Trial, Any]:
    """A recorder that has lived three episodes in each of seven corridors of unequal length."""
    law, core = corridor(), seeded(Recorder, 0)
    network = ActorCritic(law.observation_space, law.action_space, core)
    trial = RolloutWorker(law).run(PPOAgent(network), sample_tasks(law, 7, 1, "train"), 3, 0)
    return network, core, trial, law


def test_an_agents_steps_stand_where_the_whole_trial_says(acted: Any) -> None:
    network, core, trial, law = acted
    (trajectory,) = trial.phases
    length = 3 * law.horizon
    assert core.notebook.begun == [(7, length)] and trajectory.most_steps == length
    assert trajectory.mask.sum(dim=0).unique().numel() > 1 and not core.notebook.trials
    whole = network.seen(trajectory.inputs, trajectory.most_steps)
    assert whole.trial_length == length and len(core.notebook.steps) == len(trajectory.mask)
    for t, seen in enumerate(core.notebook.steps):
        assert seen.trial_length == length
        for name in SHOWN:
            assert torch.equal(getattr(seen, name), getattr(whole, name)[t]), name
        assert seen.trial_step == whole.trial_step[t] == t
    # an episode's observation is the position, which no more steps lead to than were taken
    assert (whole.observation[..., 0] <= whole.episode_step).all()


def test_a_core_that_gives_the_policys_parameters_acts_and_learns_by_them(acted: Any) -> None:
    network, core, trial, _ = acted
    (trajectory,) = trial.phases
    assert network.policy is None and not any("policy" in name for name in network.state_dict())
    policy, value = network(network.seen(trajectory.inputs, trajectory.most_steps))
    assert value.shape == trajectory.reward.shape
    torch.testing.assert_close(policy.log_prob(trajectory.action), trajectory.notes["log_prob"])
    weight = core.layer.weight.clone()
    learner = PPO(network, PPOConfig(epochs=1, minibatches=1))
    metrics = learner.update(trial, 0.0, generator(0, "update"))
    assert metrics["kl"] < 1e-6 and not torch.equal(core.layer.weight, weight)
    assert core.notebook.trials[-1].trial_length == trajectory.most_steps
