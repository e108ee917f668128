"""What happens in a maze, step by step: what a move earns, and the most that can still be earned."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.envs.batched import Transition
from rl2meta.envs.maze_layouts import Layout
from rl2meta.tasks import Tasks, TensorTasks

Ways = Mapping[str, Tensor]
"""By goal, the length of a shortest path to it after each move, [B, 5]; ``between`` key and door, [B, 1]."""


class Rules(NamedTuple):
    """The rules of a family: (reward, key held, episode over) of an arrival in a cell, and Q* of each move.

    With l steps left, a move after which a goal is d steps away reaches it if d < l.
    """

    arrive: Callable[[TensorTasks, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    earns: Callable[[Ways, Tensor, Tensor], Tensor]


class Walk:
    """The dynamics. A state is (2t + held)·n + cell after t steps; held is 1 with the key, else 0.

    Args:
        horizon: number of steps in an episode.
        layout: the maze that all tasks share.
        rules: of the family.
        device: of the tables.
    """

    def __init__(self, horizon: int, layout: Layout, rules: Rules, device: torch.device) -> None:
        self._horizon, self._rules, self._layout = horizon, rules, _on(device, layout)

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        """Return the tasks with the distances between their goals."""
        return _with_between(self._layout, tasks)

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        """Return the state at the start of an episode, [B]."""
        return torch.full_like(episode, self._layout.start)

    def observe(self, state: Tensor) -> Tensor:
        """Return the cell, [B]."""
        return state % len(self._layout.next_cell)

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        """Move, and return what it earned beside the regret of every move."""
        num_cells = len(self._layout.next_cell)
        cell, held, elapsed = state % num_cells, state // num_cells % 2 == 1, state // (2 * num_cells)
        left = self._horizon - elapsed
        there = self._layout.next_cell[cell, action]
        reward, holds, over = self._rules.arrive(tasks, there, held)
        earns = _earns(self._rules, self._layout, tasks, cell, held, left)
        regrets = earns.amax(dim=1, keepdim=True) - earns  # V* − Q*, [B, 5]
        return Transition(
            state=(2 * (elapsed + 1) + holds) * num_cells + there,
            reward=reward,
            terminated=over | (left <= 1),
            truth={
                "expected_reward": reward,
                "regret": regrets.gather(1, action.unsqueeze(1)).squeeze(1),
                "regrets": regrets,
            },
        )


def _arrive_searching(tasks: TensorTasks, cell: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (cell == tasks.parameters["goal"]).float(), held, torch.zeros_like(held)


def _search_earns(ways: Ways, held: Tensor, left: Tensor) -> Tensor:
    return (left - ways["goal"]).clamp(min=0)  # one reward at the arrival, and one for each step after it


def _arrive_fetching(tasks: TensorTasks, cell: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    opens, holds = held & (cell == tasks.parameters["door"]), held | (cell == tasks.parameters["key"])
    return (opens | (holds & ~held)).float(), holds, opens


def _fetch_earns(ways: Ways, held: Tensor, left: Tensor) -> Tensor:
    first = torch.where(held, ways["door"], ways["key"])  # the goal to go to
    second = (first + ways["between"] < left) & ~held
    return (first < left).float() + second


SEARCH, FETCH = Rules(_arrive_searching, _search_earns), Rules(_arrive_fetching, _fetch_earns)


def _earns(
    rules: Rules, layout: Layout, tasks: TensorTasks, cell: Tensor, held: Tensor, left: Tensor
) -> Tensor:
    """Return Q* of each move from a cell, [B, 5]; the tasks must know ``between``."""
    table = layout.ahead.flatten(0, 1)  # [cells × cells, 5]
    goals = {name: goal for name, goal in tasks.parameters.items() if name != "between"}
    ways = {name: table.index_select(0, goal * len(layout.ahead) + cell) for name, goal in goals.items()}
    ways["between"] = tasks.parameters["between"].unsqueeze(1)
    return rules.earns(ways, held.unsqueeze(1), left.unsqueeze(1).float())


def _with_between(layout: Layout, tasks: TensorTasks) -> TensorTasks:
    """Add the distance from the first to the last goal of each task, [B]: 0 if there is only one."""
    goals = list(tasks.parameters.values())
    return TensorTasks({**tasks.parameters, "between": layout.distances[goals[0], goals[-1]].float()})


def _on(device: torch.device, layout: Layout) -> Layout:
    tables = {name: getattr(layout, name).to(device) for name in Layout._fields if name != "start"}
    return layout._replace(**tables)


def optimum(horizon: int, layout: Layout, rules: Rules, tasks: Tasks) -> Tensor:
    """Return V* at the start: the largest Q* of a move, [num_tasks]."""
    cells = cells_of(tasks)
    like = next(iter(cells.values()))
    layout = _on(like.device, layout)
    start, left = torch.full_like(like, layout.start), torch.full_like(like, horizon)
    held = torch.zeros_like(like, dtype=torch.bool)
    return _earns(rules, layout, _with_between(layout, TensorTasks(cells)), start, held, left).amax(dim=1)


def cells_of(tasks: Tasks) -> Mapping[str, Tensor]:
    """Return the cells of the goals of tasks, by name, [num_tasks] each."""
    if not isinstance(tasks, TensorTasks):
        raise TypeError(f"expected TensorTasks of cells, got {type(tasks).__name__}")
    return tasks.parameters
