"""Grid mazes with hidden goals: an agent that finds a goal can use it in later episodes.

Cells are numbered in reading order: row · size + column. The actions are stay, up, down, left and right; a
move into a wall or across the border has no effect. The observation is only the agent's cell.
"""

from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from rl2meta.envs.batched import TensorVectorEnv
from rl2meta.envs.maze_layouts import MOVES, Layout, LayoutName, Size, check_fit, layout_of, part_of
from rl2meta.envs.maze_rules import FETCH, SEARCH, Walk, cells_of, optimum
from rl2meta.history import History
from rl2meta.models import HiddenGoals
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRICT = ConfigDict(extra="forbid", strict=True)
Horizon = Annotated[int, Field(ge=1, le=10_000, description="maximum number of steps in an episode")]
Fraction = Annotated[float, Field(gt=0, lt=1, description="fraction of the tasks that is held out")]


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
        check_fit(self.size, self.layout)

    @property
    def model(self) -> HiddenGoals:
        """The model of the tasks."""
        return HiddenGoals(*self.layout_tables()[:3], num_goals=1, columns=self.size)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The agent's cell."""
        return gym.spaces.Discrete(self.size**2)

    @property
    def action_space(self) -> gym.Space[Any]:
        """Stay, up, down, left, right."""
        return gym.spaces.Discrete(len(MOVES))

    def layout_tables(self) -> Layout:
        """Return the maze that all tasks share, on the CPU; not to be changed in place."""
        return layout_of(self.size, self.layout)

    def tasks_of(self, split: Split) -> TensorTasks:
        """Return every task of a split once."""
        goals = self.layout_tables().goals
        return TensorTasks(
            {"goal": goals[part_of(split, len(goals), self.test_fraction, "split", len(goals))]}
        )

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw goals of a split, with replacement."""
        tasks = self.tasks_of(split)
        return tasks[torch.randint(len(tasks), (num_tasks,), generator=generator)]

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` mazes that step together on ``device``."""
        return TensorVectorEnv(
            self, Walk(self.horizon, self.layout_tables(), SEARCH, device), num_envs, device
        )

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return max(0, H + 1 − max(1, d(start, goal))), [num_tasks]: a shortest path, then staying."""
        return optimum(self.horizon, self.layout_tables(), SEARCH, tasks)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: the best order in which to search the cells is a travelling salesman's problem."""
        return None

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the maze, what is hidden, and the agent's path."""
        from rl2meta.envs.maze_pictures import draw_maze, maze_of

        maze = maze_of(self.layout_tables(), _hidden(tasks, row), history)
        draw_maze(figure, maze, history, _title("Dark room", self))

    def describe(self, tasks: Tasks, row: int, history: History) -> str:
        """Return the maze as letters; see ``maze_text``."""
        from rl2meta.envs.maze_pictures import maze_of, maze_text

        maze = maze_of(self.layout_tables(), _hidden(tasks, row), history)
        return maze_text(maze, history, _title("Dark room", self))


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
        check_fit(self.size, self.layout)

    @property
    def model(self) -> HiddenGoals:
        """The model of the tasks."""
        return HiddenGoals(*self.layout_tables()[:3], num_goals=2, columns=self.size)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The agent's cell."""
        return gym.spaces.Discrete(self.size**2)

    @property
    def action_space(self) -> gym.Space[Any]:
        """Stay, up, down, left, right."""
        return gym.spaces.Discrete(len(MOVES))

    def layout_tables(self) -> Layout:
        """Return the maze that all tasks share, on the CPU; not to be changed in place."""
        return layout_of(self.size, self.layout)

    def tasks_of(self, split: Split) -> TensorTasks:
        """Return every task of a split once."""
        goals = self.layout_tables().goals
        others = len(goals) - 1
        pairs = len(goals) * others
        pair = part_of(split, pairs, self.test_fraction, "split", pairs)
        key, door = pair // others, pair % others
        return TensorTasks({"key": goals[key], "door": goals[door + (door >= key)]})  # a door skips its key

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw pairs of a split, with replacement."""
        tasks = self.tasks_of(split)
        return tasks[torch.randint(len(tasks), (num_tasks,), generator=generator)]

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` mazes that step together on ``device``."""
        return TensorVectorEnv(
            self, Walk(self.horizon, self.layout_tables(), FETCH, device), num_envs, device
        )

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return the number of rewards that can be reached in time, first key then door, [num_tasks]."""
        return optimum(self.horizon, self.layout_tables(), FETCH, tasks)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: the best order in which to search the cells is a travelling salesman's problem."""
        return None

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the maze, what is hidden, and the agent's path."""
        from rl2meta.envs.maze_pictures import draw_maze, maze_of

        maze = maze_of(self.layout_tables(), _hidden(tasks, row), history)
        draw_maze(figure, maze, history, _title("Key to door", self))

    def describe(self, tasks: Tasks, row: int, history: History) -> str:
        """Return the maze as letters; see ``maze_text``."""
        from rl2meta.envs.maze_pictures import maze_of, maze_text

        maze = maze_of(self.layout_tables(), _hidden(tasks, row), history)
        return maze_text(maze, history, _title("Key to door", self))


def _hidden(tasks: Tasks, row: int) -> dict[str, int]:
    """Return the cells of what is hidden in a task, by name."""
    return {name: int(cells[row]) for name, cells in cells_of(tasks).items()}


def _title(name: str, law: DarkRooms | KeyToDoor) -> str:
    return f"{name}, {law.size} × {law.size} cells{', four rooms' if law.layout == 'four_rooms' else ''}"
