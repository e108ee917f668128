"""Pictures and text of mazes: walls, where the agent has been, and its path in this episode."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rl2meta.envs import pictures
from rl2meta.envs.maze_layouts import Layout
from rl2meta.history import EpisodeRecord, History

Cells = NDArray[np.int64]
_WALL = "#4A4A4A"
_INCHES = 3.7  # of the map
_LETTERS = {"goal": "G", "key": "K", "door": "D"}


class Maze(NamedTuple):
    """What a picture shows.

    Attributes:
        free: which cells are not walls, [size, size].
        start: the cell in which episodes start.
        hidden: the cells of hidden things, by name: the goal, or key and door.
        paths: the cells of each episode, [t + 1] each.
    """

    free: NDArray[np.bool_]
    start: int
    hidden: Mapping[str, int]
    paths: Sequence[Cells]


def maze_of(layout: Layout, hidden: Mapping[str, int], history: History) -> Maze:
    """Return the picture's content for a layout whose moves never slip."""
    size = math.isqrt(len(layout.next_cell))
    free = np.zeros(size**2, bool)
    free[layout.goals.numpy()] = True
    paths = [walked(episode, layout) for episode in history.episodes]
    return Maze(free.reshape(size, size), layout.start, hidden, paths)


def draw_maze(figure: Figure, maze: Maze, history: History, title: str) -> None:
    """Draw a maze, what is hidden in it, and where the agent went."""
    size = len(maze.free)
    pictures.heading(figure, title, pictures.progress(history))
    width = _INCHES / figure.get_figwidth()
    panel = pictures.Panel(figure, (0.04, 0.05, width, _INCHES / 4.8), (0, size), (size, 0))  # rows go down
    panel.shapes(_squares(np.arange(size**2), size), facecolors=_floor(maze))
    grid = [[(0, k), (size, k)] for k in range(size + 1)] + [[(k, 0), (k, size)] for k in range(size + 1)]
    panel.lines(grid, color=pictures.GRID, lw=0.8)
    cell = 72 * _INCHES / size  # in points
    row, column = _middles(np.array([maze.start]), size)
    panel.line(column, row, marker="s", ms=0.72 * cell, mfc="none", mec=pictures.FAINT, mew=1.2)
    for name, place in maze.hidden.items():
        (row,), (column,) = _middles(np.array([place]), size)
        panel.line([column], [row], **_symbol(name, 0.6 * cell))
        if name != "goal":
            panel.words(column, row, _LETTERS[name], size=0.36 * cell, color="white", weight="bold")
    rows, columns = _middles(maze.paths[-1], size)
    panel.line(columns, rows, color=pictures.NOW, lw=max(1.5, 0.07 * cell), solid_joinstyle="round")
    panel.line(columns[-1:], rows[-1:], color=pictures.NOW, marker="o", ms=0.36 * cell, mec="white")
    _explain(figure, maze.hidden, 0.04 + width + 0.045)
    pictures.returns(figure, (0.09 + width, 0.125, 0.87 - width, 0.24), history)


def maze_text(maze: Maze, history: History, title: str) -> str:
    """Return the maze as letters: # wall, @ agent, o its path, G goal, K key, D door."""
    letters = np.where(maze.free, ".", "#").ravel()
    letters[maze.paths[-1]] = "o"
    for name, place in maze.hidden.items():
        letters[place] = _LETTERS[name]
    letters[maze.paths[-1][-1]] = "@"
    rows = letters.reshape(maze.free.shape)
    return "\n".join([title, pictures.progress(history), *(" ".join(row) for row in rows)])


def walked(episode: EpisodeRecord, layout: Layout) -> Cells:
    """Return the cells of an episode, [t + 1]; the last one follows from the last move."""
    cells = episode.observations.astype(np.int64).copy()
    if episode.num_steps:  # not every record holds the observation after an episode's last step
        cells[-1] = int(layout.next_cell[int(cells[-2]), int(episode.actions[-1])])
    return cells


def _explain(figure: Figure, goals: Mapping[str, int], left: float) -> None:
    entries: list[tuple[str, dict[str, Any]]] = [(f"{name} (hidden)", _symbol(name, 9)) for name in goals]
    entries += [
        ("agent, and its path now", {"marker": "o", "ms": 7, "color": pictures.NOW}),
        ("cells seen in this trial", {"marker": "s", "ms": 8, "color": pictures.SEEN, "alpha": 0.45}),
        ("start", {"marker": "s", "ms": 8, "mfc": "none", "mec": pictures.FAINT}),
    ]
    pictures.key(figure, (left, 0.795), entries, row=False)


def _symbol(name: str, size: float) -> dict[str, Any]:
    if name == "goal":
        return {"marker": "*", "ms": 1.3 * size, "color": pictures.GOOD, "mec": "white", "mew": 0.5}
    colour = pictures.GOOD if name == "key" else pictures.OTHER
    return {"marker": "o" if name == "key" else "s", "ms": size, "color": colour, "mec": "white", "mew": 0.5}


def _floor(maze: Maze) -> Any:
    """Return the colour of each cell, [cells, 3]: the more often it was seen, the darker."""
    visits = np.bincount(np.concatenate(maze.paths), minlength=maze.free.size)
    share = np.where(visits > 0, 0.12 + 0.5 * visits / max(visits.max(), 8), 0)
    colours = pictures.shades(pictures.SEEN, share)
    colours[~maze.free.ravel()] = pictures.shades(_WALL, 1.0)
    return colours


def _middles(cells: Cells, size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return rows and columns of the middles of cells."""
    return cells // size + 0.5, cells % size + 0.5


def _squares(cells: Cells, size: int) -> NDArray[np.float64]:
    return pictures.rectangles(cells % size, cells // size, np.ones(len(cells)), np.ones(len(cells)))
