"""The picture of a tabular MDP: its states on a circle, and what was tried in them."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rl2meta.envs import pictures
from rl2meta.history import History

Array = NDArray[Any]
_MOST_LABELS = 30  # more numbers are not readable


def draw_graph(figure: Figure, action_values: Array, history: History) -> None:
    """Draw the transitions so far, as wide as they are frequent, and a table of the visits.

    Args:
        figure: an empty one.
        action_values: Q* of each state and action with the steps that are left, [S, A].
        history: what has happened.
    """
    states, actions = action_values.shape
    pictures.heading(figure, f"MDP of {states} states and {actions} actions", pictures.progress(history))
    width = 3.7 / figure.get_figwidth()
    _draw_states(figure, (0.03, 0.05, width, 3.7 / 4.8), states, history)
    _draw_table(figure, (0.12 + width, 0.47, 0.84 - width, 0.33), action_values, history)
    pictures.returns(figure, (0.12 + width, 0.125, 0.84 - width, 0.16), history)


def _draw_states(figure: Figure, box: pictures.Box, states: int, history: History) -> None:
    panel = pictures.Panel(figure, box, (-1.2, 1.2), (-1.2, 1.2))
    angle = np.pi / 2 - 2 * np.pi * np.arange(states) / states
    places = np.stack([np.cos(angle), np.sin(angle)], axis=1)  # [S, 2]
    radius = min(0.13, 2.2 / states)
    moves, counts = _moves(history)
    here, there = moves.T
    again = here == there  # the state stays the same
    widths = 0.7 + 5 * counts / max(counts.max(initial=0), 10)
    colours = pictures.shades(pictures.SEEN, 0.35 + 0.65 * counts / max(counts.max(initial=0), 5))
    loops = places[here[again]] * (1 + 1.1 * radius)
    turn = 2 * np.pi * np.linspace(0, 1, 30)
    ring = 0.75 * radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    panel.lines(loops[:, None] + ring, linewidths=widths[again], colors=colours[again])
    ways = ~again
    pictures.arrows(
        panel, places[here[ways]], places[there[ways]], widths[ways], radius, 0.12, colors=colours[ways]
    )
    path = history.current.observations.astype(int)[-2:]
    if len(set(path)) == 2 and not history.current.ended:
        pictures.arrows(panel, places[path[:1]], places[path[1:]], [2.5], radius, 0.12, colors=[pictures.NOW])
    _write_states(panel, places, radius, path[-1] if not history.current.ended else -1)


def _write_states(panel: pictures.Panel, places: Array, radius: float, now: int) -> None:
    size = 72 * 3.7 * 2 * radius / 2.4  # a diameter, in points
    current = np.arange(len(places)) == now
    look: dict[str, Any] = {"marker": "o", "ms": size, "mec": pictures.INK, "mew": 1.0}
    panel.line(*places[~current].T, color="white", **look)
    panel.line(*places[current].T, color=pictures.NOW, **look)
    if len(places) <= _MOST_LABELS:
        for state, place in enumerate(places):
            colour = "white" if current[state] else pictures.INK
            panel.words(
                place[0], place[1], str(state), color=colour, size=min(10.0, 0.55 * size), weight="bold"
            )


def _moves(history: History) -> tuple[Array, Array]:
    """Return the pairs (state, next state) so far, [n, 2], and how often each occurred, [n].

    The last transition of an episode does not count: its end is not in every record, and leads nowhere.
    """
    pairs = [
        np.stack([states[:-1], states[1:]], axis=1)
        for episode in history.episodes
        for states in [episode.observations[: -1 if episode.ended else None].astype(int)]
    ]
    found, counts = np.unique(np.concatenate(pairs), axis=0, return_counts=True)
    return found.reshape(-1, 2), counts


def _draw_table(figure: Figure, box: pictures.Box, action_values: Array, history: History) -> None:
    """Draw the visits of each action (down) in each state (to the right), and the best action of each."""
    states, actions = action_values.shape
    visits = np.zeros((states, actions))
    if history.num_steps:
        np.add.at(visits, (history.observations.astype(int), history.actions.astype(int)), 1)
    panel = pictures.Panel(figure, box, (0, states), (actions, 0))  # actions go down
    left, top = np.repeat(np.arange(states), actions), np.tile(np.arange(actions), states)
    one = np.ones(states * actions)
    shades = pictures.shades(
        pictures.SEEN, np.where(visits > 0, 0.15 + 0.85 * visits / max(visits.max(), 5), 0)
    )
    edges = {"edgecolors": pictures.GRID, "lw": 0.6 if states <= _MOST_LABELS else 0}
    panel.shapes(pictures.rectangles(left, top, one, one), facecolors=shades.reshape(-1, 3), **edges)
    best = action_values.argmax(axis=1)
    dot = min(6.0, 0.5 * 72 * min(box[2] * figure.get_figwidth() / states, box[3] * 4.8 / actions))
    panel.line(
        np.arange(states) + 0.5, best + 0.5, marker="o", ms=dot, color=pictures.GOOD, mec="white", mew=0.5
    )
    if not history.current.ended:
        now = int(history.observation)
        frame = np.array([[now, 0], [now + 1, 0], [now + 1, actions], [now, actions], [now, 0]])
        panel.lines([frame], color=pictures.NOW, lw=1.8)
    pictures.key(figure, (box[0] - 0.02, box[1] + box[3] + 0.04), _WORDS, row=True)
    for number in pictures.whole_numbers(0, states - 1, 10 if states <= 12 else 4):
        panel.words(number + 0.5, actions, f"{number:.0f}", va="top")
    for number in pictures.whole_numbers(0, actions - 1, 5):
        panel.words(-0.012 * states, number + 0.5, f"{number:.0f}", ha="right")
    panel.words(states / 2, actions * 1.11, "state", va="top")
    panel.words(-0.14 * states, actions / 2, "action", rotation=90)


_WORDS = [
    ("visits", {"marker": "s", "ms": 8, "color": pictures.SEEN}),
    ("best (hidden)", {"marker": "o", "ms": 6, "color": pictures.GOOD}),
]
