"""Masks: an illegal action is never taken, by no agent, in no check; the environments raise if one is."""

import math
from typing import Any

import gymnasium as gym
import pytest
import torch
from masked import Games

from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.references.anything import UniformAgent
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.commands.check import run_checks
from rl2meta.counted import sizes_of
from rl2meta.envs.checking import check_distribution
from rl2meta.envs.checking.case import next_legal
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trial
from rl2meta.workers.faults import EnvironmentFault
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

KINDS = [("discrete", "info"), ("discrete", "observation"), ("choices", "info"), ("choices", "parts")]
KINDS += [("switches", "info"), ("switches", "observation")]
EVERY_KIND = pytest.mark.parametrize(("acted", "told"), KINDS)
RL2 = RL2Config.model_validate({"core": {"hidden_size": 8}, "epochs": 2, "minibatches": 1})
MAML = MAMLTRPOConfig(hidden_sizes=[8], episodes_per_phase=2, curvature_fraction=1.0)


def plugged(family: Any, processes: int = 0) -> PluggedIn:
    return PluggedIn(family, WorkerSettings(processes=processes))


def learners(law: PluggedIn) -> dict[str, Any]:
    return {
        "rl2": rl2_learner(law.observation_space, law.action_space, RL2),
        "maml": MAMLTRPOLearner(law.observation_space, law.action_space, MAML),
    }


def lived(law: PluggedIn, agent: Any, episodes: int = 4) -> Trial:
    worker = RolloutWorker(law)
    trial = worker.run(agent, sample_tasks(law, 5, 0, "train"), episodes, 0)
    worker.close()
    return trial


def taken_are_legal(law: PluggedIn, trial: Trial) -> None:
    for phase in trial.phases:
        assert phase.inputs.legal is not None and phase.inputs.legal.shape[-1]
        action = phase.action.reshape(*phase.mask.shape, -1)
        legal = torch.split(phase.inputs.legal, sizes_of(law.action_space), dim=-1)
        for entry, part in enumerate(legal):
            assert part.gather(-1, action[..., entry : entry + 1])[phase.mask].all()
        assert not phase.inputs.legal[phase.mask].all()
        assert "action_mask" not in phase.truth


@EVERY_KIND
@pytest.mark.parametrize("who", ["rl2", "maml", "random"])
def test_agents_take_legal_actions_and_learn(acted: str, told: str, who: str) -> None:
    law = plugged(Games(acted, told))
    agent = UniformAgent(law.action_space) if who == "random" else learners(law)[who].agent
    trial = lived(law, agent)
    taken_are_legal(law, trial)
    if who != "random":
        learner, rows = learners(law)[who], list[Any]()
        worker = RolloutWorker(law)
        meta_train(learner, law, worker, Budget(3, 4, 4), 0, lambda row: rows.append(row) or False)
        worker.close()
        assert all(math.isfinite(value) for row in rows for value in row.values())
        assert max(row["kl"] for row in rows) > 0
        taken_are_legal(law, lived(law, learner.agent))


def test_the_loss_sees_the_probabilities_by_which_actions_were_taken() -> None:
    """On the first pass over a batch the ratio of new to old probabilities is 1."""
    law = plugged(Games("choices"))
    learner = learners(law)["rl2"]
    (phase,) = lived(law, learner.agent).phases
    batch = learner.batches([phase])[0]
    policy, _ = learner.network(learner.network.seen(phase.inputs, phase.most_steps), phase.inputs.legal)
    torch.testing.assert_close(policy.log_prob(batch.action), batch.log_prob)
    unmasked, _ = learner.network(learner.network.seen(phase.inputs, phase.most_steps))
    assert (unmasked.log_prob(batch.action) < batch.log_prob - 1e-3)[phase.mask].any()


def test_random_actions_are_even_among_the_legal_ones() -> None:
    law = plugged(Games(told="observation", horizon=1))
    (phase,) = (
        RolloutWorker(law)
        .run(UniformAgent(law.action_space), sample_tasks(law, 4000, 0, "train"), 1, 0)
        .phases
    )
    legal = phase.inputs.legal
    assert legal is not None
    wanted = (legal / legal.sum(-1, keepdim=True)).mean(dim=(0, 1))
    shares = torch.nn.functional.one_hot(phase.action, 4).double().mean(dim=(0, 1))
    assert (shares - wanted).abs().max() < 5 * (0.25 / 4000) ** 0.5


@EVERY_KIND
def test_workers_tell_the_same_masks(acted: str, told: str) -> None:
    laws = [plugged(Games(acted, told), processes) for processes in (0, 2)]
    alone, together = (lived(law, learners(law)["rl2"].agent) for law in laws)
    for one, other in zip(alone.phases, together.phases, strict=True):
        assert one.inputs.legal is not None and other.inputs.legal is not None
        assert torch.equal(one.inputs.legal, other.inputs.legal) and torch.equal(one.action, other.action)


@pytest.mark.parametrize(("acted", "told"), [("discrete", "observation"), ("choices", "parts")])
def test_checks_take_legal_actions_only(acted: str, told: str, capsys: Any) -> None:
    check_distribution(plugged(Games(acted, told)), num_tasks=3)
    overrides = [f"distribution.acted={acted}", f"distribution.told={told}", "workers.processes=0"]
    assert run_checks("masked:Games", overrides) == 0, capsys.readouterr().out


def test_checkers_of_others_take_legal_actions_in_an_environment_by_its_id(capsys: Any) -> None:
    law = ["distribution.id=masked:Masked-v0", "distribution.vary_kwargs={bonus: [0, 1]}"]
    assert run_checks("gymnasium", [*law, "workers.processes=0"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("none legal", r"step 1, step: expected a legal action in 'action_mask', got \[0 0 0 0\]"),
        ("too long", r"expected 4 numbers, 1 for a legal action and 0 for any other, for 'action_mask', got"),
    ],
)
def test_masks_that_are_none_are_told(fault: str, message: str) -> None:
    with pytest.raises(EnvironmentFault, match=message):
        lived(
            plugged(Games(told="observation", fault=fault)),
            UniformAgent(gym.spaces.Discrete(4)),
        )


@pytest.mark.parametrize("acted", ["discrete", "switches"])
def test_a_mask_that_comes_late_is_told(acted: str) -> None:
    """The first look finds none, so it would be ignored."""
    law = plugged(Games(acted, fault="told late"))
    with pytest.raises(EnvironmentFault, match=r"expected 'action_mask' in the info of the first reset or"):
        lived(law, UniformAgent(law.action_space))


def test_a_mask_that_comes_late_is_told_as_nobody_would_see_it(capsys: Any) -> None:
    assert run_checks("masked:Games", ["distribution.fault=told late", "workers.processes=0"]) == 2
    assert "FAULT" in (said := capsys.readouterr().out) and "put it into every info" in said


@pytest.mark.parametrize("who", ["rl2", "maml"])
@pytest.mark.parametrize("acted", ["discrete", "choices"])
def test_the_last_step_of_an_episode_may_leave_no_action(acted: str, who: str) -> None:
    """Environments that idle afterwards keep this mask while others still play."""
    law = plugged(Games(acted, fault="none at the end"))
    learner, worker, rows = learners(law)[who], RolloutWorker(law), list[Any]()
    meta_train(learner, law, worker, Budget(3, 4, 4), 0, lambda row: rows.append(row) or False)
    trial = lived(law, learner.agent)
    worker.close()
    assert any(not legal.any(dim=-1).all() for p in trial.phases if (legal := p.inputs.legal) is not None)
    taken_are_legal(law, trial)
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("who", ["rl2", "maml"])
def test_agents_learn_to_set_every_entry(who: str) -> None:
    """The numbers of a random action sum to 1.5 at most, those of the best legal one to 2.3 in the mean."""
    law = plugged(Games("choices"))
    learner, worker, rows = learners(law)[who], RolloutWorker(law), list[Any]()
    meta_train(learner, law, worker, Budget(10, 16, 4), 0, lambda row: rows.append(row) or False)
    chance, learnt = (lived(law, agent) for agent in (UniformAgent(law.action_space), learner.agent))
    before, after = (
        sum(float((p.reward * p.mask).sum()) for p in trial.phases) / trial.num_steps()
        for trial in (chance, learnt)
    )
    assert after > before + 0.1


def test_the_next_legal_value_replaces_an_illegal_one() -> None:
    mask = torch.tensor([[True, False, False, True, True], [False, True, True, False, False]])
    action = torch.tensor([[1, 0], [0, 2]])
    assert next_legal(action, mask, gym.spaces.MultiDiscrete([2, 3])).tolist() == [[0, 1], [1, 0]]
    assert next_legal(torch.tensor([1, 4]), mask, gym.spaces.Discrete(5)).tolist() == [3, 1]
