"""Four rooms with slippery floors and a hidden goal cell."""

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import gymnasium as gym
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from rl2meta.dynamic_programming import backward_induction
from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.envs.maze_layouts import MOVES, next_cell_of, part_of
from rl2meta.history import History
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rl2meta.envs.maze_pictures import Maze

_STRICT = ConfigDict(extra="forbid", strict=True)
_ROOMS = """
.....#.....
.....#.....
...........
.....#.....
.....#.....
#.####.....
.....###.##
.....#.....
.....#.....
...........
.....#.....
"""
START = (6, 8)
"""The door between the two rooms on the right, as (row, column)."""


@dataclass(frozen=True, config=_STRICT)
class FourRooms:
    """Four rooms with slippery floors and a hidden goal cell: a step that ends on the goal pays 1.

    The actions are up, down, left and right. With probability ``slip`` the agent moves in one of the three
    other directions, each equally likely. A move into a wall has no effect. Episodes start in the door
    between the two rooms on the right and last ``horizon`` steps; the goal does not end them. The observation
    is the number of the agent's cell, row · 11 + column.

    There is one task for each free cell except the start, 103 in all. A fixed share of them is held out, the
    same for every seed: test goals are cells that were never a goal in training. Tasks are drawn with
    replacement.

    Source: Frans et al. 2018 (arXiv 1710.09767), whose goals are random; the authors' code sets them to one
    constant cell. Walls and slips: Sutton et al. 1999 (Artificial Intelligence 112), section 2, in the form
    of that code (openai/mlsh, Fourrooms), which has the same start and horizon.

    Raises:
        pydantic.ValidationError: for numbers out of range.
    """

    slip: Annotated[float, Field(ge=0, le=1, description="probability of another direction")] = 1 / 3
    horizon: Annotated[int, Field(ge=1, le=1000, description="number of steps in an episode")] = 100
    test_fraction: Annotated[
        float, Field(gt=0, lt=1, description="fraction of the tasks that is held out")
    ] = 0.2

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The agent's cell."""
        return gym.spaces.Discrete(_free().numel())

    @property
    def action_space(self) -> gym.Space[Any]:
        """Up, down, left, right."""
        return gym.spaces.Discrete(len(MOVES) - 1)

    def tasks_of(self, split: Split) -> TensorTasks:
        """Return every task of a split once."""
        goals = _goals()
        return TensorTasks({"goal": goals[part_of(split, len(goals), self.test_fraction, "four rooms")]})

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw goals of a split, with replacement."""
        tasks = self.tasks_of(split)
        return tasks[torch.randint(len(tasks), (num_tasks,), generator=generator)]

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` environments that step together on ``device``."""
        return TensorVectorEnv(self, _Walk(self, device), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return V*_H(start), [num_tasks], by dynamic programming."""
        if not isinstance(tasks, TensorTasks):
            raise TypeError(f"expected TensorTasks with 'goal', got {type(tasks).__name__}")
        goal = tasks.parameters["goal"]
        return plan_of(self).value.to(goal.device)[goal, self.horizon, _start()]

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: there are too many posteriors over the goal to enumerate."""
        return None

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the rooms, the hidden goal, and the agent's path."""
        from rl2meta.envs.maze_pictures import draw_maze

        draw_maze(figure, _maze(tasks, row, history), history, "Four rooms with slippery floors")

    def describe(self, tasks: Tasks, row: int, history: History) -> str:
        """Return the rooms as letters; see ``maze_text``."""
        from rl2meta.envs.maze_pictures import maze_text

        return maze_text(_maze(tasks, row, history), history, "Four rooms with slippery floors")


class Plan(NamedTuple):
    """The optimum for every goal.

    Attributes:
        next_cell: the cell that a direction leads to, int64 [cells, 4].
        chances: the probability of each direction for each action, [4, 4].
        value: V*_h(s; g), the best expected return of h steps from s, [cells as goals, H + 1, cells].
    """

    next_cell: Tensor
    chances: Tensor
    value: Tensor

    def earns(self, goal: Tensor, cell: Tensor, left: Tensor) -> Tensor:
        """Return Q* of each action, [B, 4], with ``left`` steps to go, from tensors [B]."""
        there = self.next_cell[cell]  # [B, 4]
        rest = self.value[goal.unsqueeze(1), left.unsqueeze(1) - 1, there]
        return (rest + (there == goal.unsqueeze(1)).float()) @ self.chances.T


@lru_cache(maxsize=8)
def plan_of(law: FourRooms) -> Plan:
    """Return the optimum for every goal, on the CPU; not to be changed in place."""
    next_cell = next_cell_of(_free())[:, 1:]  # without staying
    others = law.slip / 3
    chances = torch.full((4, 4), others, dtype=torch.float64)
    chances.fill_diagonal_(1 - law.slip)
    cells = len(next_cell)
    on_goal = torch.eye(cells, dtype=torch.float64)  # [goals, cells]

    def backup(value: Tensor, to_go: int) -> Tensor:
        return (value + on_goal)[:, next_cell] @ chances.T  # [goals, cells, 4]

    optimum = backward_induction(backup, torch.zeros_like(on_goal), law.horizon).value  # longest first
    value = torch.cat([torch.zeros_like(on_goal).unsqueeze(1), optimum.flip(1)], dim=1)
    return Plan(next_cell, chances.float(), value.float())


class _Walk:
    """The dynamics. A state is t·n + cell after t steps, with n cells."""

    def __init__(self, law: FourRooms, device: torch.device) -> None:
        self._horizon = law.horizon
        self._plan = Plan(*(table.to(device) for table in plan_of(law)))

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full_like(episode, _start())

    def observe(self, state: Tensor) -> Tensor:
        return state % len(self._plan.next_cell)

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        plan, goal, num_cells = self._plan, tasks.parameters["goal"], len(self._plan.next_cell)
        cell, elapsed = state % num_cells, state // num_cells
        earns = plan.earns(goal, cell, self._horizon - elapsed)
        regrets = earns.amax(dim=1, keepdim=True) - earns  # V* − Q*, [B, 4]
        chances = plan.chances[action]  # [B, 4], of the directions
        direction = (_uniform(chances, generator) >= chances.cumsum(dim=1)).sum(dim=1).clamp(max=3)
        there = plan.next_cell[cell, direction]
        expected = (chances * (plan.next_cell[cell] == goal.unsqueeze(1))).sum(dim=1)
        return Transition(
            state=(elapsed + 1) * num_cells + there,
            reward=(there == goal).float(),
            terminated=torch.zeros_like(there, dtype=torch.bool),
            truth={
                "expected_reward": expected,
                "regret": regrets.gather(1, action.unsqueeze(1)).squeeze(1),
                "regrets": regrets,
            },
        )


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a number of U[0, 1) for each row, [B, 1]."""
    return torch.rand(len(like), 1, generator=generator, device=like.device)


@lru_cache(maxsize=1)
def _free() -> Tensor:
    return torch.tensor([[cell == "." for cell in row] for row in _ROOMS.split()])  # [11, 11]


def _start() -> int:
    return START[0] * len(_free()) + START[1]


@lru_cache(maxsize=1)
def _goals() -> Tensor:
    cells = _free().flatten().nonzero().squeeze(1)
    return cells[cells != _start()]


def _maze(tasks: Tasks, row: int, history: History) -> "Maze":
    from rl2meta.envs.maze_pictures import Maze
    from rl2meta.envs.pictures import parameter

    hidden = {"goal": int(parameter(tasks, "goal", row))}
    paths = [episode.observations.astype(int) for episode in history.episodes]
    return Maze(_free().numpy(), _start(), hidden, paths)
