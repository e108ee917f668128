import json

import pytest
import torch

from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.dependent_bandits import DependentBandits
from rl2meta.envs.mazes import DarkRooms, KeyToDoor
from rl2meta.envs.two_step import TwoStep
from rl2meta.tasks import TaskDistribution, Tasks, TensorTasks, sample_tasks, shares_tasks

BANDITS = BernoulliBandits(num_arms=3)


def test_tensor_tasks_are_tasks() -> None:
    assert isinstance(TensorTasks({"means": torch.zeros(2, 3)}), Tasks)


def test_index_and_slice() -> None:
    tasks = TensorTasks({"a": torch.arange(4), "b": torch.arange(8).reshape(4, 2)})
    assert len(tasks) == 4
    assert tasks[1:3].parameters["a"].tolist() == [1, 2]
    assert tasks[torch.tensor([3, 3, 0])].parameters["b"].tolist() == [[6, 7], [6, 7], [0, 1]]


@pytest.mark.parametrize(
    ("trained", "judged", "shared"),
    [
        (BANDITS, BANDITS, False),
        (BANDITS, BernoulliBandits(3, low=0.5), False),
        (DarkRooms(), DarkRooms(), False),
        (DarkRooms(), DarkRooms(test_fraction=0.5), True),
        (KeyToDoor(), KeyToDoor(), False),
        (KeyToDoor(), KeyToDoor(test_fraction=0.5), True),
        (DependentBandits("uniform"), DependentBandits("uniform"), False),
        (DependentBandits("easy"), DependentBandits("easy"), True),
        (DependentBandits("easy"), DependentBandits("hard"), False),
        (TwoStep(), TwoStep(), True),
    ],
    ids=str,
)
def test_tasks_that_training_shares_are_noticed(
    trained: TaskDistribution, judged: TaskDistribution, shared: bool
) -> None:
    assert shares_tasks(trained, judged, 3) is shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_a_round_trip_through_json_keeps_every_bit(dtype: torch.dtype) -> None:
    values = (torch.rand(5, 2, 3, dtype=torch.float64) * 2).to(dtype)
    again = TensorTasks.from_dict(json.loads(json.dumps(TensorTasks({"x": values}).to_dict())))
    assert again.parameters["x"].dtype == dtype
    assert torch.equal(again.parameters["x"], values)


def test_parameters_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one length .* got \{'a': 2, 'b': 3\}"):
        TensorTasks({"a": torch.zeros(2), "b": torch.zeros(3)})


def test_train_and_test_tasks_share_nothing_and_depend_on_the_seed_alone() -> None:
    torch.rand(10)  # what something else consumed does not matter
    train, test, other = (
        sample_tasks(BANDITS, 500, seed, split).parameters["means"]
        for seed, split in ((0, "train"), (0, "test"), (1, "test"))
    )
    assert torch.equal(test, sample_tasks(BANDITS, 500, 0, "test").parameters["means"])
    rows = [{tuple(row) for row in each.tolist()} for each in (train, test, other)]
    assert rows[0].isdisjoint(rows[1]) and rows[1].isdisjoint(rows[2])


def test_fewer_tasks_are_not_a_different_law() -> None:
    """A smoke test on few held-out tasks and the full run draw from the same stream."""
    few, many = (sample_tasks(BANDITS, n, 0, "test").parameters["means"] for n in (16, 64))
    assert torch.equal(few, many[:16])
    assert abs(float(sample_tasks(BANDITS, 100_000, 0, "test").parameters["means"].mean()) - 0.5) < 0.005
