"""The mazes without their goals: walls, moves, and shortest paths between cells.

Cells are numbered in reading order: row · size + column.
"""

from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from rl2meta.randomness import generator as named_generator
from rl2meta.tasks import Split

MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
"""The actions as (rows, columns): stay, up, down, left, right."""
LayoutName = Annotated[Literal["open", "four_rooms"], Field(description="walls: open or four_rooms")]
Size = Annotated[int, Field(ge=3, le=32, description="number of rows, and of columns")]


class Layout(NamedTuple):
    """A maze without its goals, as tables over its cells.

    Attributes:
        next_cell: the cell that an action leads to, int64 [cells, 5].
        distances: d, length of a shortest path between two cells, int64 [cells, cells]; ``cells`` if none.
        goals: the cells that can be reached from the start, including the start, int64 [goals], ascending.
        start: the cell in which episodes start.
        ahead: the distance to a goal g after action a in cell c, ahead[g, c, a] = d(next_cell[c, a], g),
            float32 [cells, cells, 5].
    """

    next_cell: Tensor
    distances: Tensor
    goals: Tensor
    start: int
    ahead: Tensor


def check_fit(size: int, layout: LayoutName) -> None:
    """Raise ValueError for four rooms in an even size or one below 7."""
    if layout == "four_rooms" and (size < 7 or size % 2 == 0):
        raise ValueError(f"layout four_rooms: expected an odd size >= 7, got {size}")


@lru_cache(maxsize=16)
def layout_of(size: int, name: LayoutName) -> Layout:
    """Return the maze of a size and a name, on the CPU; not to be changed in place."""
    free = torch.ones(size, size, dtype=torch.bool)
    if name == "four_rooms":
        middle, doors = size // 2, [size // 2 // 2, size - 1 - size // 2 // 2]
        free[middle, :] = free[:, middle] = False
        free[middle, doors] = free[doors, middle] = True
    next_cell = next_cell_of(free)
    distances, start = _distances(next_cell), _start(free)
    goals = (distances[start] < size**2).nonzero().squeeze(1)
    return Layout(next_cell, distances, goals, start, distances.T.float()[:, next_cell])


def next_cell_of(free: Tensor) -> Tensor:
    """Return the cell that each of ``MOVES`` leads to, int64 [cells, 5], for free cells bool [size, size]."""
    size = len(free)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    here, leads = row * size + column, []
    for down, right in MOVES:
        there = (row + down).clamp(0, size - 1) * size + (column + right).clamp(0, size - 1)
        leads.append(torch.where(free & free.flatten()[there], there, here))
    return torch.stack(leads, dim=-1).reshape(-1, len(MOVES))


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
def part_of(split: Split, num_tasks: int, test_fraction: float, *name: str | int) -> Tensor:
    """Return the numbers of a split's tasks, at least one; they do not depend on the seed of a run.

    Args:
        split: the part.
        num_tasks: of the family.
        test_fraction: of the tasks that are held out.
        name: of the random stream that shuffles the tasks.
    """
    order = torch.randperm(num_tasks, generator=named_generator(0, *name))
    num_test = min(max(round(test_fraction * num_tasks), 1), num_tasks - 1)
    return order[:num_test] if split == "test" else order[num_test:]
