"""Mazes pay where their goals are, and their closed forms are what backward induction finds."""

import warnings
from itertools import product
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from pydantic import ValidationError
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import Tensor

from rl2meta.dynamic_programming import solve
from rl2meta.envs.checking import check_distribution
from rl2meta.envs.mazes import DarkRooms, KeyToDoor
from rl2meta.tasks import TensorTasks, sample_tasks

CPU = torch.device("cpu")
STAY, UP, DOWN, LEFT, RIGHT = range(5)
BOTH = pytest.mark.parametrize("family", [DarkRooms, KeyToDoor])
FOUR_ROOMS = """
...#...
.......
..S#...
#.###.#
...#...
.......
...#...
"""


def all_tasks(family: Any) -> TensorTasks:
    parts = [family.tasks_of(split).parameters for split in ("train", "test")]
    return TensorTasks({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def rows(tasks: TensorTasks) -> list[tuple[int, ...]]:
    return list(zip(*(tensor.tolist() for tensor in tasks.parameters.values()), strict=True))


def play(family: Any, tasks: TensorTasks, actions: Tensor) -> list[tuple[Tensor, ...]]:
    """Play actions [T, N] on N tasks: observation, reward, terminated, truncated and regret of each step."""
    envs = family.make_envs(len(tasks), CPU)
    envs.reset(seed=0, options={"tasks": tasks})
    steps = [envs.step(action) for action in actions]
    return [(info["final_obs"], *flags, info["regret"]) for _, *flags, info in steps]


# The contract


@pytest.mark.parametrize(
    "family",
    [
        DarkRooms(),
        DarkRooms(size=3, horizon=1, test_fraction=0.5),
        DarkRooms(size=4, horizon=30),
        DarkRooms(size=9, layout="four_rooms"),
        KeyToDoor(horizon=20),
        KeyToDoor(size=3, horizon=2),
        KeyToDoor(size=7, horizon=15, layout="four_rooms"),
    ],
    ids=repr,
)
def test_the_contract_is_kept(family: Any) -> None:
    check_distribution(family)


@BOTH
@pytest.mark.parametrize("settings", [{}, {"size": 7, "layout": "four_rooms"}])
def test_gymnasium_and_sb3_accept_the_single_view(family: Any, settings: dict[str, Any]) -> None:
    target = {"family": f"rl2meta.envs.mazes:{family.__name__}", **settings}
    spec = EnvSpec("rl2meta/SomeMaze-v0", entry_point="rl2meta.envs.batched:make_env", kwargs=target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(spec).unwrapped)
        sb3_check_env(gym.make(spec).unwrapped)


@BOTH
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 2}, "greater than or equal to 3"),
        ({"size": 9.0}, "valid integer"),
        ({"horizon": 0}, "greater than or equal to 1"),
        ({"test_fraction": 1.0}, "less than 1"),
        ({"layout": "maze"}, "'open' or 'four_rooms'"),
        ({"size": 8, "layout": "four_rooms"}, "expected an odd size >= 7, got 8"),
        ({"size": 5, "layout": "four_rooms"}, "expected an odd size >= 7, got 5"),
        ({"rooms": 4}, "[Uu]nexpected keyword"),
    ],
)
def test_bad_settings_are_refused(family: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        family(**settings)


# The layout


def test_four_rooms_look_as_drawn() -> None:
    drawn = FOUR_ROOMS.replace("\n", "")
    layout = DarkRooms(size=7, layout="four_rooms").layout_tables()
    assert layout.start == drawn.index("S")
    assert layout.goals.tolist() == [cell for cell, mark in enumerate(drawn) if mark != "#"]
    for cell, action in product(range(49), range(5)):
        down, right = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)][action]
        row, column = cell // 7 + down, cell % 7 + right
        inside = 0 <= row < 7 and 0 <= column < 7
        moves = inside and drawn[cell] != "#" and drawn[7 * row + column] != "#"
        assert layout.next_cell[cell, action] == (7 * row + column if moves else cell), (cell, action)


def test_distances_are_city_blocks_where_there_are_no_walls() -> None:
    layout = KeyToDoor(size=5).layout_tables()
    cell = torch.arange(25)
    row, column = cell // 5, cell % 5
    blocks = (row.unsqueeze(1) - row).abs() + (column.unsqueeze(1) - column).abs()
    assert torch.equal(layout.distances, blocks)


@pytest.mark.parametrize(("size", "start"), [(3, 4), (4, 5), (9, 40)])
def test_episodes_start_in_the_middle(size: int, start: int) -> None:
    envs = DarkRooms(size=size).make_envs(3, CPU)
    observation, _ = envs.reset(seed=0)
    assert observation.tolist() == [start] * 3


# The tasks


@BOTH
@pytest.mark.parametrize("settings", [{}, {"size": 7, "layout": "four_rooms", "test_fraction": 0.5}])
def test_train_and_test_are_disjoint_and_together_all(family: Any, settings: dict[str, Any]) -> None:
    law = family(**settings)
    train, test = (rows(law.tasks_of(split)) for split in ("train", "test"))
    goals = law.layout_tables().goals.tolist()
    if family is DarkRooms:
        every = {(goal,) for goal in goals}
    else:
        every = {(key, door) for key in goals for door in goals if key != door}
    assert set(train) | set(test) == every
    assert len(train) + len(test) == len(every)  # none twice, none in both
    assert len(test) == round(law.test_fraction * len(every))


@BOTH
def test_draws_are_of_their_split_whatever_the_seed(family: Any) -> None:
    law = family(size=3)
    for split, seed in product(("train", "test"), (0, 1)):
        drawn = rows(sample_tasks(law, 2000, seed, split))
        assert set(drawn) == set(rows(law.tasks_of(split)))


def test_there_is_always_a_task_to_train_and_one_to_test_on() -> None:
    for fraction in (1e-6, 1 - 1e-6):
        law = DarkRooms(size=3, test_fraction=fraction)
        assert sorted(len(law.tasks_of(split)) for split in ("train", "test")) == [1, 8]


# The dynamics


def test_a_dark_room_pays_for_every_step_that_ends_on_the_goal() -> None:
    law = DarkRooms(size=3, horizon=5)
    tasks = TensorTasks({"goal": torch.tensor([1, 4])})  # above the start, and the start itself
    actions = torch.tensor([UP, UP, STAY, DOWN, STAY]).unsqueeze(1).expand(5, 2)
    observation, reward, terminated, truncated, _ = map(
        torch.stack, zip(*play(law, tasks, actions), strict=True)
    )
    assert observation[:, 0].tolist() == [1, 1, 1, 4, 4]
    assert reward.T.tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
    assert terminated.T.tolist() == [[False] * 4 + [True]] * 2
    assert not truncated.any()


def test_the_door_opens_with_the_key_only() -> None:
    law = KeyToDoor(size=3, horizon=9)
    tasks = TensorTasks({"key": torch.tensor([1]), "door": torch.tensor([3])})
    walk = [LEFT, RIGHT, UP, DOWN, UP, DOWN, LEFT, LEFT, STAY]  # door, start, key, start, key, start, door
    steps = play(law, tasks, torch.tensor(walk).unsqueeze(1))
    assert [int(reward) for _, reward, *_ in steps] == [0, 0, 1, 0, 0, 0, 1, 0, 0]
    assert [bool(terminated) for _, _, terminated, *_ in steps] == [False] * 6 + [True, False, False]
    assert [int(observation) for observation, *_ in steps][-3:] == [3, 3, 3]  # the new episode's first, too


def test_the_key_is_lost_when_the_episode_ends() -> None:
    law = KeyToDoor(size=3, horizon=2)
    tasks = TensorTasks({"key": torch.tensor([1]), "door": torch.tensor([3])})
    steps = play(law, tasks, torch.tensor([[UP], [DOWN], [LEFT], [STAY]]))
    assert [int(reward) for _, reward, *_ in steps] == [1, 0, 0, 0]


# The optimum


def test_the_mean_optimum_of_the_usual_dark_room() -> None:
    law = DarkRooms()
    assert round(float(law.optimal_return(all_tasks(law)).mean()), 2) == 16.54


def model(next_cell: Tensor, tasks: TensorTasks) -> tuple[Tensor, Tensor]:
    """Return rewards [N, S, A] and transitions [N, S, A, S] over states held · cells + cell, one by one."""
    cells, num_actions = next_cell.shape
    rewards = torch.zeros(len(tasks), 2 * cells, num_actions)
    transitions = torch.zeros(len(tasks), 2 * cells, num_actions, 2 * cells)
    for held, cell, action in product(range(2), range(cells), range(num_actions)):
        there, state = int(next_cell[cell, action]), held * cells + cell
        due = "goal" if "goal" in tasks.parameters else ("key", "door")[held]
        found = (tasks.parameters[due] == there).float()
        rewards[:, state, action] = found
        transitions[:, state, action, held * cells + there] = 1 if due == "goal" else 1 - found
        if due == "key":
            transitions[:, state, action, cells + there] = found
    return rewards, transitions


SMALL = [
    DarkRooms(size=3, horizon=6),
    DarkRooms(size=7, horizon=14, layout="four_rooms"),
    KeyToDoor(size=3, horizon=8),
]


def assert_closed_forms(law: Any, tasks: TensorTasks) -> None:
    """Compare reward, regret and optimum with backward induction for every stage, state and action."""
    layout, horizon = law.layout_tables(), law.horizon
    cells = len(layout.next_cell)
    rewards, transitions = model(layout.next_cell, tasks)
    optimum = solve(rewards, transitions, horizon)
    torch.testing.assert_close(law.optimal_return(tasks), optimum.value[:, 0, layout.start])
    index = (torch.arange(n) for n in (len(tasks), horizon, 2 * cells, 5))
    task, stage, state, action = (axis.flatten() for axis in torch.meshgrid(*index, indexing="ij"))
    dynamics = law.make_envs(1, CPU)._dynamics
    prepared = dynamics.prepare(tasks[task])
    end = dynamics.step(prepared, 2 * cells * stage + state, action, torch.Generator())
    regret = optimum.value.unsqueeze(-1) - optimum.action_value
    assert torch.equal(end.truth["regrets"], regret[task, stage, state])
    torch.testing.assert_close(end.truth["regret"], regret.flatten(), rtol=0, atol=0)
    torch.testing.assert_close(end.reward, rewards[task, state, action], rtol=0, atol=0)
    torch.testing.assert_close(end.truth["expected_reward"], end.reward, rtol=0, atol=0)
    goes_on = (transitions.sum(dim=-1)[task, state, action] > 0) & (stage < horizon - 1)
    assert torch.equal(end.terminated, ~goes_on)


@pytest.mark.parametrize("law", SMALL, ids=repr)
def test_closed_forms_are_backward_induction(law: Any) -> None:
    assert_closed_forms(law, all_tasks(law))


def test_closed_forms_are_backward_induction_for_keys_in_four_rooms() -> None:
    law = KeyToDoor(size=7, horizon=10, layout="four_rooms")
    tasks = all_tasks(law)
    for part in torch.arange(len(tasks)).split(130):
        assert_closed_forms(law, tasks[part])


@pytest.mark.parametrize("law", [DarkRooms(size=3, horizon=4), KeyToDoor(size=3, horizon=5)], ids=repr)
def test_regret_sums_to_what_was_missed_whatever_is_done(law: Any) -> None:
    tasks = all_tasks(law)
    sequences = torch.tensor(list(product(range(5), repeat=law.horizon))).T  # [H, 5^H]
    task = torch.arange(len(tasks)).repeat_interleave(sequences.shape[1])
    steps = play(law, tasks[task], sequences.repeat(1, len(tasks)))
    _, reward, terminated, truncated, regret = map(torch.stack, zip(*steps, strict=True))
    ended = terminated | truncated
    inside = ended.cumsum(dim=0) - ended.long() == 0  # up to the first episode's end
    total = ((reward + regret) * inside).sum(dim=0)
    assert torch.equal(total, law.optimal_return(tasks)[task])
    best = reward.mul(inside).sum(dim=0).reshape(len(tasks), -1).amax(dim=1)
    assert torch.equal(best, law.optimal_return(tasks))  # some sequence reaches it


@BOTH
def test_what_is_not_known_and_not_accepted(family: Any) -> None:
    assert family().bayes_optimal_return(3) is None
    with pytest.raises(TypeError, match="expected TensorTasks of cells, got dict"):
        family().optimal_return({})
