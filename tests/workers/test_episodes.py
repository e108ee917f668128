"""Which episodes are played, how they end, and what the rollout makes of those that end early."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from walks import Counted

from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import MappingTasks
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory, Trial
from rl2meta.workers.plugged_in import PluggedIn, PluggedVectorEnv
from rl2meta.workers.settings import WorkerSettings

HORIZON = 5
MIXED = (0.0, 0.2, 0.5, 0.8, 1.0)
"""How likely each step of a lane is to end its episode."""


def tasks_of(ends: tuple[float, ...]) -> MappingTasks:
    return MappingTasks(tuple({"drift": 0.0, "end": end} for end in ends))


def make(processes: int, num_envs: int, horizon: int = HORIZON) -> PluggedVectorEnv:
    law = PluggedIn(Counted(horizon), WorkerSettings(processes=processes))
    return law.make_envs(num_envs, torch.device("cpu"))


@pytest.mark.parametrize("processes", [0, 2])
def test_environments_idle_after_their_episodes_and_are_not_stepped(processes: int) -> None:
    envs, number = make(processes, 5), 2
    action, steps = torch.zeros(5, dtype=torch.int64), torch.zeros(5)
    envs.reset(seed=0, options={"tasks": tasks_of(MIXED), "episodes_wanted": number})
    for phase in (1, 2):
        played = torch.zeros(5)
        for _ in range(number * HORIZON):
            assert not envs.finished
            idle = played == number
            observation, reward, terminated, truncated, info = envs.step(action)
            last = terminated | truncated
            assert not last[idle].any() and not reward[idle].any() and not info["regret"][idle].any()
            steps += ~idle
            played += last
            counted, begun = observation[:, 1], observation[:, 2]
            assert torch.equal(counted, steps)  # an idle environment has not been called
            assert torch.equal(begun, torch.clamp(played + 1, max=number) + number * (phase - 1))
            if (played == number).all():
                break
        assert envs.finished
        assert len(set(steps.tolist())) > 2  # else little was tried out
        envs.reset(options={"episodes_wanted": number})
    envs.close()


@pytest.mark.parametrize("options", [{}, {"episodes_wanted": -1}])
def test_without_a_number_of_episodes_they_never_end(options: dict[str, int]) -> None:
    envs = make(0, 5)
    envs.reset(seed=0, options={"tasks": tasks_of(MIXED), **options})
    for _ in range(4 * HORIZON):
        *_, info = envs.step(torch.zeros(5, dtype=torch.int64))
        assert not envs.finished and info["regret"].all()


@pytest.mark.parametrize("horizon", [1, 3])
def test_episodes_are_truncated_at_the_horizon_unless_they_end_there(horizon: int) -> None:
    envs = make(0, 2, horizon)
    envs.reset(seed=0, options={"tasks": tasks_of((0.0, 1.0))})
    for step in range(1, 7):
        _, _, terminated, truncated, _ = envs.step(torch.zeros(2, dtype=torch.int64))
        assert truncated.tolist() == [step % horizon == 0, False]
        assert terminated.tolist() == [False, True]


@dataclass
class Random:
    """Acts at random; keeps the phases that it adapted to."""

    phase: Phase
    generator: torch.Generator | None = None

    def begin(
        self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None
    ) -> list[Trajectory]:
        self.generator = generator
        return []

    def act(self, carry: list[Trajectory], step: TimeStep) -> tuple[Choice, list[Trajectory]]:
        action = torch.randint(3, (len(step.reward),), generator=self.generator)
        return Choice(action, action, {"log_prob": torch.ones(len(action))}), carry

    def adapt(self, carry: list[Trajectory], trajectory: Trajectory) -> list[Trajectory]:
        carry.append(trajectory)
        return carry


def run(ends: tuple[float, ...], phase: Phase, episodes: int, processes: int = 0, seed: int = 0) -> Trial:
    worker = RolloutWorker(PluggedIn(Counted(HORIZON), WorkerSettings(processes=processes)))
    trial = worker.run(Random(phase), tasks_of(ends), episodes, seed)
    worker.close()
    return trial


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_rollout_is_as_long_as_its_longest_lane(processes: int, seed: int) -> None:
    (phase,) = run((0.3, 0.6, 1.0), Phase(), 4, processes, seed).phases
    ended = (phase.last & phase.mask).sum(dim=0)
    assert ended.tolist() == [4, 4, 4]
    lengths = phase.mask.sum(dim=0)
    assert lengths[2] == 4 and len(phase.mask) == lengths.max() < 4 * HORIZON
    for lane, length in enumerate(lengths.tolist()):
        assert phase.mask[:length, lane].all() and not phase.mask[length:, lane].any()
        # an environment counts its own steps, and tells of none that it did not take
        assert phase.truth["regret"][:, lane].tolist() == [
            *range(1, length + 1),
            *[0] * (len(phase.mask) - length),
        ]


@pytest.mark.parametrize("phase", [Phase(1), Phase(2), Phase(1, 2)])
def test_phases_are_padded_to_one_length(phase: Phase) -> None:
    trial = run(MIXED[1:], phase, 8)
    lengths = {len(each.mask) for each in trial.phases}
    assert len(trial.phases) == 8 // ((phase.episodes or 1) * phase.lanes_per_task)
    assert len(lengths) == 1
    assert any(not each.mask[-1].any() for each in trial.phases)  # else none was padded
    assert any(each.mask[-1].any() for each in trial.phases)
    for each in trial.phases:
        live = each.mask.any(dim=1)
        padded = [
            each.action,
            each.notes["log_prob"],
            each.reward,
            each.last,
            *each.inputs,
            each.truth["regret"],
        ]
        for field in padded:
            assert field is not None and not field[~live].any()
    per_episode = trial.per_episode("mask")
    assert per_episode is not None
    assert per_episode.shape == (4, 8) and bool((per_episode >= 1).all()) and bool((per_episode <= 5).all())
    assert trial.num_steps() == per_episode.sum()


def test_an_agent_adapts_to_what_counts_and_steps_of_a_trial_go_on() -> None:
    """A second phase begins with the action and the reward that counted last, not with those of idling."""
    first, second = run(MIXED, Phase(1), 2).phases
    end = first.mask.sum(dim=0) - 1
    lanes = torch.arange(len(end))
    assert torch.equal(second.inputs.reward[0], first.reward[end, lanes])
    assert torch.equal(second.inputs.action[0].argmax(dim=1), first.action[end, lanes])
    assert second.inputs.first[0].all()
    assert torch.equal(second.truth["regret"][0], first.truth["regret"][end, lanes] + 1)


def test_padding_keeps_what_is_there() -> None:
    (phase,) = run((0.3, 0.6), Phase(), 3).phases
    longer = phase.padded(len(phase.mask) + 4)
    assert phase.padded(len(phase.mask)) is phase
    assert longer.horizon == phase.horizon and len(longer.mask) == len(phase.mask) + 4
    for name, field in vars(phase).items():
        if isinstance(field, Tensor):
            padded = getattr(longer, name)
            assert padded.dtype == field.dtype
            assert torch.equal(padded[:-4], field) and not padded[-4:].any()
    assert torch.equal(longer.steps_left()[:-4], phase.steps_left()) and not longer.steps_left()[-4:].any()


def counted_steps_left(last: Any, mask: Any, horizon: int) -> Any:
    """What ``steps_left`` should be, lane by lane and step by step."""
    left = np.zeros(mask.shape, np.int64)
    for lane in range(mask.shape[1]):
        episodes, elapsed = int((last & mask)[:, lane].sum()), 0
        for step in range(len(mask)):
            if mask[step, lane]:
                left[step, lane] = episodes * horizon - elapsed
                elapsed += 1
                if last[step, lane]:
                    episodes, elapsed = episodes - 1, 0
    return left


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("phase", [Phase(), Phase(2)])
def test_steps_left_is_what_counting_gives(seed: int, phase: Phase) -> None:
    for each in run(MIXED, phase, 4, seed=seed).phases:
        expected = counted_steps_left(each.last.numpy(), each.mask.numpy(), HORIZON)
        np.testing.assert_array_equal(each.steps_left().numpy(), expected)
        assert (expected[each.mask.numpy()] >= 1).all()
        counted = expected[0].tolist()
        assert counted == [HORIZON * (phase.episodes or 4)] * len(MIXED)
