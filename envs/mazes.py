"""Grid mazes with hidden goals: an agent that finds a goal can use it in later episodes.

Cells are numbered in reading order: row · size + column. The actions are stay, up, down, left and right; a
move into a wall or across the border has no effect. The observation is only the agent's cell.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import gymnasium as gym
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.models import HiddenGoals
from rl2meta.randomness import generator as named_generator
from rl2meta.tasks import Split, Tasks, TensorTasks

_STRICT = ConfigDict(extra="forbid", strict=True)
_MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # (rows, columns): stay, up, down, left, right
LayoutName = Annotated[Literal["open", "four_rooms"], Field(description="walls: open or four_rooms")]
Size = Annotated[int, Field(ge=3, le=32, description="number of rows, and of columns")]
Horizon = Annotated[int, Field(ge=1, le=10_000, description="maximum number of steps in an episode")]
Fraction = Annotated[float, Field(gt=0, lt=1, description="fraction of the tasks that is held out")]


class Layout(NamedTuple):
    """A maze without its goals, as tables over its cells.

    Attributes:
        next_cell: the cell that an action leads to, int64 [cells, 5].
        distances: d, length of a shortest path between two cells, int64 [cells, cells]; ``cells`` if none.
        goals: the cells that can be reached from the start, including the start, int64 [goals], ascending.
        start: the cell in which episodes start.
    """

    next_cell: Tensor
    distances: Tensor
    goals: Tensor
    start: int


@dataclass(frozen=True, config=_STRICT)
class DarkRooms:
    """Mazes with a hidden goal cell: a step that ends on the goal pays 1, any other step pays 0.

    Episodes start in the free cell that is nearest to the centre (Euclidean distance), and the first of
    equals in reading order. This is the centre; with an even size, the upper left of the four middle cells;
    with four rooms, whose walls cross in the centre, the inner corner of the upper left room. Episodes end by
    termination after ``horizon`` steps. The layout "four_rooms" has walls along the middle row and column,
    and a door in each of the four half walls.

    There is one task for each cell that can be reached, including the start: size² in the open layout (81 by
    default), (size − 1)² + 4 with four rooms. A fixed share of them is held out, the same for every seed:
    test goals are cells that were never a goal in training. Tasks are drawn with replacement.

    Source: Laskin et al. 2022 (arXiv 2210.14215), Dark Room.

    Raises:
        pydantic.ValidationError: for numbers out of range, or four rooms in an even size or one below 7.
    """

    size: Size = 9
    horizon: Horizon = 20
    layout: LayoutName = "open"
    test_fraction: Fraction = 0.2

    def __post_init__(self) -> None:
        _check_fit(self.size, self.layout)

    @property
    def model(self) -> HiddenGoals:
        """The model of the tasks."""
        return HiddenGoals(*self.layout_tables()[:3], num_goals=1)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The agent's cell."""
        return gym.spaces.Discrete(self.size**2)

    @property
    def action_space(self) -> gym.Space[Any]:
        """Stay, up, down, left, right."""
        return gym.spaces.Discrete(len(_MOVES))

    def layout_tables(self) -> Layout:
        """Return the maze that all tasks share, on the CPU; not to be changed in place."""
        return _layout(self.size, self.layout)

    def tasks_of(self, split: Split) -> TensorTasks:
        """Return every task of a split once."""
        goals = self.layout_tables().goals
        return TensorTasks({"goal": goals[_part(len(goals), self.test_fraction, split)]})

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw goals of a split, with replacement."""
        tasks = self.tasks_of(split)
        return tasks[torch.randint(len(tasks), (num_tasks,), generator=generator)]

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` mazes that step together on ``device``."""
        return TensorVectorEnv(self, _Walk(self, _SEARCH, device), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return max(0, H + 1 − max(1, d(start, goal))), [num_tasks]: a shortest path, then staying."""
        return _optimum(self, _SEARCH, tasks)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: the best order in which to search the cells is a travelling salesman's problem."""
        return None


@dataclass(frozen=True, config=_STRICT)
class KeyToDoor:
    """Mazes with a hidden key and a hidden door: the key pays 1 once, then reaching the door pays 1.

    An episode ends by termination when the agent reaches the door with the key, or after ``horizon`` steps.
    Without the key, the door is a cell like any other. The observation does not show whether the agent holds
    the key: only the reward does. Layouts and start are those of ``DarkRooms``. Key or door may be in the
    start cell; the agent gets them by staying there.

    Key and door are any two different cells of the n that can be reached, so there are n (n − 1) tasks, by
    default 6480. A fixed share of them is held out, the same for every seed: test *pairs* never occur in
    training, but their key and their door may occur there in other pairs. Tasks are drawn with replacement.

    A detour costs nothing while enough time remains: only the step that makes a goal unreachable has regret.

    Source: Laskin et al. 2022 (arXiv 2210.14215), Dark Key-to-Door.

    Raises:
        pydantic.ValidationError: for numbers out of range, or four rooms in an even size or one below 7.
    """

    size: Size = 9
    horizon: Horizon = 50
    layout: LayoutName = "open"
    test_fraction: Fraction = 0.2

    def __post_init__(self) -> None:
        _check_fit(self.size, self.layout)

    @property
    def model(self) -> HiddenGoals:
        """The model of the tasks."""
        return HiddenGoals(*self.layout_tables()[:3], num_goals=2)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The agent's cell."""
        return gym.spaces.Discrete(self.size**2)

    @property
    def action_space(self) -> gym.Space[Any]:
        """Stay, up, down, left, right."""
        return gym.spaces.Discrete(len(_MOVES))

    def layout_tables(self) -> Layout:
        """Return the maze that all tasks share, on the CPU; not to be changed in place."""
        return _layout(self.size, self.layout)

    def tasks_of(self, split: Split) -> TensorTasks:
        """Return every task of a split once."""
        goals = self.layout_tables().goals
        others = len(goals) - 1
        pair = _part(len(goals) * others, self.test_fraction, split)
        key, door = pair // others, pair % others
        return TensorTasks({"key": goals[key], "door": goals[door + (door >= key)]})  # a door skips its key

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw pairs of a split, with replacement."""
        tasks = self.tasks_of(split)
        return tasks[torch.randint(len(tasks), (num_tasks,), generator=generator)]

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` mazes that step together on ``device``."""
        return TensorVectorEnv(self, _Walk(self, _FETCH, device), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return the number of rewards that can be reached in time, first key then door, [num_tasks]."""
        return _optimum(self, _FETCH, tasks)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: the best order in which to search the cells is a travelling salesman's problem."""
        return None


class _Rules(NamedTuple):
    """The rules of a family: (reward, key held, episode over) of an arrival in a cell, and V* of a state."""

    arrive: Callable[[TensorTasks, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    value: Callable[[TensorTasks, Tensor, Tensor, Tensor, Tensor], Tensor]


class _Walk:
    """The dynamics. A state is (2t + held)·n + cell after t steps; held is 1 with the key, else 0."""

    def __init__(self, law: DarkRooms | KeyToDoor, rules: _Rules, device: torch.device) -> None:
        layout = law.layout_tables()
        self._start, self._horizon, self._rules = layout.start, law.horizon, rules
        self._next_cell, self._distances = layout.next_cell.to(device), layout.distances.to(device)

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full_like(episode, self._start)

    def observe(self, state: Tensor) -> Tensor:
        return state % len(self._next_cell)

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        distances, num_cells = self._distances, len(self._distances)
        cell, held, elapsed = state % num_cells, state // num_cells % 2 == 1, state // (2 * num_cells)
        left = self._horizon - elapsed
        there = self._next_cell[cell, action]
        reward, holds, over = self._rules.arrive(tasks, there, held)
        could = self._rules.value(tasks, distances, cell, held, left)
        can = self._rules.value(tasks, distances, there, holds, left - 1).masked_fill(over, 0)
        after = (2 * (elapsed + 1) + holds) * num_cells + there
        truth = {"expected_reward": reward, "regret": could - reward - can}
        return Transition(after, reward, over | (left <= 1), truth)


def _arrive_searching(tasks: TensorTasks, cell: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (cell == tasks.parameters["goal"]).float(), held, torch.zeros_like(held)


def _search_value(tasks: TensorTasks, distances: Tensor, cell: Tensor, held: Tensor, left: Tensor) -> Tensor:
    distance = distances[cell, tasks.parameters["goal"]].clamp(min=1)  # staying on the goal takes one step
    return (left + 1 - distance).clamp(min=0).float()


def _arrive_fetching(tasks: TensorTasks, cell: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    opens, holds = held & (cell == tasks.parameters["door"]), held | (cell == tasks.parameters["key"])
    return (opens | (holds & ~held)).float(), holds, opens


def _fetch_value(tasks: TensorTasks, distances: Tensor, cell: Tensor, held: Tensor, left: Tensor) -> Tensor:
    key, door = tasks.parameters["key"], tasks.parameters["door"]
    to_key, to_door = distances[cell, key].clamp(min=1), distances[cell, door].clamp(min=1)
    without = (to_key <= left).long() + (to_key + distances[key, door] <= left)
    return torch.where(held, to_door <= left, without).float()


_SEARCH, _FETCH = _Rules(_arrive_searching, _search_value), _Rules(_arrive_fetching, _fetch_value)


def _optimum(law: DarkRooms | KeyToDoor, rules: _Rules, tasks: Tasks) -> Tensor:
    if not isinstance(tasks, TensorTasks):
        raise TypeError(f"expected TensorTasks of cells, got {type(tasks).__name__}")
    layout, like = law.layout_tables(), next(iter(tasks.parameters.values()))
    start, held = torch.full_like(like, layout.start), torch.zeros_like(like, dtype=torch.bool)
    left = torch.full_like(like, law.horizon)
    return rules.value(tasks, layout.distances.to(like.device), start, held, left)


@lru_cache(maxsize=16)
def _layout(size: int, name: LayoutName) -> Layout:
    free = torch.ones(size, size, dtype=torch.bool)
    if name == "four_rooms":
        middle, doors = size // 2, [size // 2 // 2, size - 1 - size // 2 // 2]
        free[middle, :] = free[:, middle] = False
        free[middle, doors] = free[doors, middle] = True
    next_cell = _next_cell(free)
    distances, start = _distances(next_cell), _start(free)
    return Layout(next_cell, distances, (distances[start] < size**2).nonzero().squeeze(1), start)


def _next_cell(free: Tensor) -> Tensor:
    size = len(free)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    here, leads = row * size + column, []
    for down, right in _MOVES:
        there = (row + down).clamp(0, size - 1) * size + (column + right).clamp(0, size - 1)
        leads.append(torch.where(free & free.flatten()[there], there, here))
    return torch.stack(leads, dim=-1).reshape(-1, len(_MOVES))


def _distances(next_cell: Tensor) -> Tensor:
    """Iterate d(s, g) = minₐ 1 + d(s', g) from d(g, g) = 0 to its fixed point, for all pairs at once."""
    num_cells = len(next_cell)
    distances = torch.full((num_cells, num_cells), num_cells, dtype=torch.int16).fill_diagonal_(0)
    while True:
        shorter = distances
        for there in next_cell.unbind(1):
            shorter = torch.minimum(shorter, 1 + distances[there])
        if torch.equal(shorter, distances):
            return distances.long()
        distances = shorter


def _start(free: Tensor) -> int:
    offset = (2 * torch.arange(len(free)) - len(free) + 1).square()  # to the centre, in half cells, squared
    away = (offset.unsqueeze(1) + offset).masked_fill(~free, 8 * len(free) ** 2)
    return int((away == away.min()).flatten().nonzero()[0])


@lru_cache(maxsize=16)
def _part(num_tasks: int, test_fraction: float, split: Split) -> Tensor:
    """Return the numbers of a split's tasks, at least one; they do not depend on the seed of a run."""
    order = torch.randperm(num_tasks, generator=named_generator(0, "split", num_tasks))
    num_test = min(max(round(test_fraction * num_tasks), 1), num_tasks - 1)
    return order[:num_test] if split == "test" else order[num_test:]


def _check_fit(size: int, layout: LayoutName) -> None:
    if layout == "four_rooms" and (size < 7 or size % 2 == 0):
        raise ValueError(f"layout four_rooms: expected an odd size >= 7, got {size}")
