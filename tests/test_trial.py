"""What a trial leaves behind: records of any shape, and parts of any name."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.trial import Choice, Lived, Phase, TimeStep, Trajectory, Trial, over_fields


class Pair(NamedTuple):
    left: Any
    right: Any


def test_fields_are_changed_where_they_stand_in_records_of_records() -> None:
    one, two = torch.tensor([1.0]), torch.tensor([20.0])
    record = Pair(one, {"a": two, "b": Pair(one, {})})
    doubled = over_fields(lambda x: 2 * x, record)
    assert doubled == Pair(2 * one, {"a": 2 * two, "b": Pair(2 * one, {})})
    assert isinstance(doubled, Pair) and isinstance(doubled.right["b"], Pair)
    assert record == Pair(one, {"a": two, "b": Pair(one, {})})  # what was given stays
    total = over_fields(lambda *parts: sum(parts), record, doubled, doubled)
    assert total == Pair(5 * one, {"a": 5 * two, "b": Pair(5 * one, {})})
    assert over_fields(torch.neg, one) == -one and over_fields(torch.neg, {}) == {}


def test_fields_are_matched_by_name_whatever_their_order() -> None:
    x, y = torch.tensor([1.0]), torch.tensor([2.0])
    got = over_fields(torch.sub, {"x": x, "y": y}, {"y": x, "x": x})
    assert got == {"x": torch.tensor([0.0]), "y": torch.tensor([1.0])} and list(got) == ["x", "y"]


@pytest.mark.parametrize("other", [{"x": 1.0}, {"x": 1.0, "z": 2.0}, {"x": 1.0, "y": 2.0, "z": 3.0}, {}])
def test_records_of_different_names_are_refused(other: dict[str, float]) -> None:
    one = Pair(torch.zeros(1), {"x": torch.zeros(1), "y": torch.zeros(1)})
    another = Pair(torch.zeros(1), {name: torch.tensor([value]) for name, value in other.items()})
    for records in ((one, another), (one, one, another), (another, one)):
        with pytest.raises(ValueError, match=r"expected the same names at every step, got .*'x', 'y'\)"):
            over_fields(lambda *parts: torch.stack(parts), *records)


def lived(step: int, rows: int = 3, **parts: Any) -> Lived:
    """A step whose every number tells which it is."""
    at = torch.full((rows,), float(step))
    inputs = TimeStep(at.reshape(-1, 1).expand(rows, 2), at.reshape(-1, 1), at + 100, at == 0)
    fields = {"notes": {"surprise": at + 200}, "truth": {"pressure": at.reshape(-1, 1) + 300}}
    return Lived(inputs, at.long(), at + 400, at == 3, at < 9, **{**fields, **parts})


def test_a_trajectory_is_its_steps_in_their_order() -> None:
    trajectory = Trajectory.of([lived(step) for step in range(4)], horizon=2, episodes=5)
    counted = torch.arange(4.0).unsqueeze(1).expand(4, 3)
    assert trajectory.inputs.observation.shape == (4, 3, 2)
    assert torch.equal(trajectory.inputs.observation[..., 1], counted)
    assert torch.equal(trajectory.inputs.reward, counted + 100) and torch.equal(
        trajectory.reward, counted + 400
    )
    assert torch.equal(trajectory.action, counted.long())
    assert trajectory.last.sum(dim=1).tolist() == [0, 0, 0, 3] and trajectory.inputs.first[0].all()
    assert torch.equal(trajectory.notes["surprise"], counted + 200)
    assert torch.equal(trajectory.truth["pressure"], counted.unsqueeze(2) + 300)
    assert (trajectory.horizon, trajectory.episodes, trajectory.most_steps) == (2, 5, 10)


@pytest.mark.parametrize("known", [{"horizon": 3}, {"episodes": 3}, {}])
def test_how_many_steps_there_may_be_is_known_from_both_or_not(known: dict[str, int]) -> None:
    trajectory = Trajectory.of([lived(0)], **known)
    assert trajectory.most_steps is None
    if "horizon" not in known:
        with pytest.raises(ValueError, match="expected a trajectory whose horizon is known"):
            trajectory.steps_left()


@pytest.mark.parametrize("part", ["notes", "truth"])
def test_steps_of_different_notes_or_truth_are_no_trajectory(part: str) -> None:
    other = lived(1, **{part: {"others": torch.zeros(3)}})
    with pytest.raises(ValueError, match=r"same names at every step, got .*'others',\)"):
        Trajectory.of([lived(0), other])


def test_columns_and_padding_hold_for_parts_of_any_name() -> None:
    trajectory = Trajectory.of([lived(step) for step in range(4)], horizon=2, episodes=5)
    some = trajectory.columns(slice(1, 3))
    padded = trajectory.padded(6)
    assert trajectory.padded(4) is trajectory
    for name in ("surprise", "pressure"):
        whole, part, longer = ({**each.notes, **each.truth}[name] for each in (trajectory, some, padded))
        assert torch.equal(part, whole[:, 1:3])
        assert torch.equal(longer[:4], whole) and longer.shape == (6, *whole.shape[1:])
        assert not longer[4:].any() and longer.dtype == whole.dtype
    for field in (*padded.inputs[:4], padded.action, padded.reward, padded.last, padded.mask):
        assert len(field) == 6 and not field[4:].any()
    assert some.inputs.observation.shape == (4, 2, 2) and some.mask.shape == (4, 2)
    assert some.most_steps == padded.most_steps == 10


def test_a_part_is_had_by_its_name() -> None:
    trajectory = Trajectory.of([lived(step) for step in range(4)])
    assert trajectory.named("reward") is trajectory.reward and trajectory.named("mask") is trajectory.mask
    assert trajectory.named("pressure") is trajectory.truth["pressure"]
    assert trajectory.named("regret") is None
    assert trajectory.named("surprise") is None  # what an agent notes is no truth


class Weather(BernoulliBandits):
    """Bandits of several steps that know parts of any name; an episode ends early at random."""

    horizon = 4

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        return TensorVectorEnv(self, _Weather(), num_envs, device)


class _Weather:
    """The state counts the steps of the episode."""

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(episode)

    def observe(self, state: Tensor) -> Tensor:
        return torch.zeros_like(state)

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        over = torch.rand(len(state), generator=generator) < 0.3
        truth = {"rain": 10.0 * state + action, "wind": torch.stack([state, -action], dim=1)}
        return Transition(state + 1, action.float(), over, truth)


class Diarist:
    """Acts at random, adapts after ``phase``, and notes its action, the row and both beside each other."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Any:
        return generator, num_tasks * self.phase.lanes_per_task

    def act(self, carry: Any, step: TimeStep) -> tuple[Choice, Any]:
        source, rows = carry
        action, row = torch.randint(2, (rows,), generator=source), torch.arange(rows)
        notes = {"mood": -action.float(), "row": row, "both": torch.stack([action, row], dim=1)}
        return Choice(action, action, notes), carry

    def adapt(self, carry: Any, trajectory: Trajectory) -> Any:
        assert set(trajectory.notes) == {"mood", "row", "both"} and set(trajectory.truth) == {"rain", "wind"}
        return carry


PHASES = pytest.mark.parametrize("phase", [Phase(), Phase(1), Phase(2, 2)], ids=str)


def _trial(phase: Phase) -> Trial:
    law = Weather(num_arms=2)
    return RolloutWorker(law).run(Diarist(phase), sample_tasks(law, 5, 0, "train"), 4, 3)


@PHASES
def test_notes_and_truth_of_any_name_travel_to_the_trajectory(phase: Phase) -> None:
    for each in _trial(phase).phases:
        steps, rows = each.mask.shape
        assert set(each.notes) == {"mood", "row", "both"} and set(each.truth) == {"rain", "wind"}
        assert torch.equal(each.notes["mood"], -each.action.float())
        assert torch.equal(each.notes["row"], torch.arange(rows).expand(steps, rows))
        assert torch.equal(each.notes["both"], torch.stack([each.action, each.notes["row"]], dim=2))
        assert torch.equal(each.truth["wind"][..., 1], -each.action)
        begins = torch.cat([torch.ones_like(each.last[:1]), each.last[:-1]])
        state = torch.zeros(rows, dtype=torch.int64)
        for t in range(steps):
            state = torch.where(begins[t], 0, state)
            assert torch.equal(each.truth["rain"][t], 10.0 * state + each.action[t])
            assert torch.equal(each.truth["wind"][t, :, 0], state)
            state = state + 1


@PHASES
def test_truth_of_any_name_is_laid_out_by_task_and_summed_by_episode(phase: Phase) -> None:
    trial = _trial(phase)
    sums, rows = trial.per_episode("rain"), trial.per_task("rain")
    assert sums is not None and rows is not None and sums.shape == (5, 4) and len(rows) == 5
    lanes = phase.lanes_per_task
    for task in range(5):
        wanted, total = [], 0.0
        for each in trial.phases:
            for b in range(lanes * task, lanes * (task + 1)):
                for t in range(int(each.mask[:, b].sum())):
                    total += float(each.truth["rain"][t, b])
                    if each.last[t, b]:
                        wanted.append(total)
                        total = 0.0
        assert sums[task].tolist() == wanted and float(rows[task].sum()) == sum(wanted)
    assert trial.per_episode("regret") is trial.per_task("regret") is None
    assert trial.per_episode("mood") is None


def test_what_a_family_does_not_tell_is_not_known() -> None:
    assert dict(Transition(torch.zeros(2), torch.zeros(2), torch.zeros(2) > 0).truth) == {}
    assert dict(Choice(torch.zeros(2), torch.zeros(2)).notes) == {}
