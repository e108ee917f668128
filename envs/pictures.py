"""What the pictures of all families share; matplotlib is imported with this file, so import it when drawing.

The pictures have no ``Axes``: making two of them takes longer than all the rest of a picture.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox, BboxTransform, TransformedBbox
from numpy.typing import NDArray

from rl2meta.colours import FAINT as FAINT
from rl2meta.colours import GRID as GRID
from rl2meta.colours import INK as INK
from rl2meta.colours import TRAINED
from rl2meta.history import History
from rl2meta.tasks import Tasks, TensorTasks

NOW, SEEN, GOOD, OTHER = TRAINED[:4]
"""Colours of what happens now, of what was seen before, of what is good and hidden, and of a second thing."""
SMALL, NORMAL = 9.0, 10.5
LEFT = 0.035
"""Where titles begin, as a share of the figure's width."""
_TITLE, _SUBTITLE = 0.945, 0.885  # shares of the height
_MOST_BARS = 30
_STEPS = [1, 2, 5, 10]  # between ticks, times a power of ten
_LETTER = 0.0108  # the width of a small letter, as a share of the width

Numbers = Any  # what NumPy makes an array of numbers of
Box = tuple[float, float, float, float]
"""Left, bottom, width and height, as shares of the figure."""


class Panel:
    """A part of a figure with coordinates of its own.

    Args:
        figure: to draw into.
        box: where.
        x, y: the coordinates at the left and right end, and at the lower and upper end.
    """

    def __init__(self, figure: Figure, box: Box, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.figure, self.box, self.x, self.y = figure, box, x, y
        self._place = TransformedBbox(Bbox.from_bounds(*box), figure.transFigure)
        self.transform = BboxTransform(Bbox.from_extents(x[0], y[0], x[1], y[1]), self._place)

    def line(self, x: Numbers, y: Numbers, clip: bool = False, **look: Any) -> None:
        """Draw a line through points, or with a ``marker`` and without ``ls`` the points alone."""
        line = Line2D(
            np.atleast_1d(x),
            np.atleast_1d(y),
            transform=self.transform,
            **({"ls": ""} | look if "marker" in look else look),
        )
        if clip:
            line.set_clip_box(self._place)
        self.figure.add_artist(line)

    def lines(self, points: Numbers, **look: Any) -> None:
        """Draw many lines, each through points [n, 2]."""
        self.figure.add_artist(LineCollection(points, transform=self.transform, **look))

    def shapes(self, corners: Numbers, **look: Any) -> None:
        """Fill many shapes, corners [shapes, n, 2]."""
        look = {"lw": 0, "antialiased": False} | look
        self.figure.add_artist(PolyCollection(corners, transform=self.transform, **look))

    def bars(self, x: Numbers, tops: Numbers, floor: float = 0.0, width: float = 0.72, **look: Any) -> None:
        """Draw vertical bars around ``x`` from ``floor`` to ``tops``, which are cut at the panel's ends."""
        ends = np.broadcast_to(np.clip(tops, *self.y), np.shape(x))
        self.shapes(
            rectangles(np.asarray(x) - width / 2, np.full(len(ends), floor), width, ends - floor), **look
        )

    def words(self, x: float, y: float, text: str, **look: Any) -> None:
        """Write a text at a point; by default centred on it."""
        usual: dict[str, Any] = {"size": SMALL, "color": INK, "ha": "center", "va": "center"}
        self.figure.text(x, y, text, transform=self.transform, parse_math=False, **(usual | look))

    def ruled(self, name: str, x: Iterable[float], below: str = "", steps: int = 4) -> None:
        """Draw the lower and the left rule with numbers, ``x`` below; ``name`` stands above."""
        (left, right), (bottom, top) = self.x, self.y
        ticks = MaxNLocator(steps, steps=_STEPS).tick_values(bottom, top)
        shown = [tick for tick in ticks if bottom <= tick <= top]
        tick_x, tick_y = (right - left) / self.box[2] / 100, (top - bottom) / self.box[3] / 100
        rules = [[(left, top), (left, bottom), (right, bottom)]]
        rules += [[(left, value), (left - 0.7 * tick_x, value)] for value in shown]
        self.lines(rules, color=FAINT, lw=0.8)
        for value in x:
            self.words(value, bottom - 1.2 * tick_y, _minus(f"{value:g}"), va="top")
        for value in shown:
            self.words(left - 1.2 * tick_x, value, _minus(f"{value:g}"), ha="right", va="center_baseline")
        self.words(left, top + 2 * tick_y, name, ha="left", va="bottom")
        self.words((left + right) / 2, bottom - 5.2 * tick_y, below, va="top")


def heading(figure: Figure, title: str, subtitle: str) -> None:
    """Write a title, and below it a line about what has happened."""
    look: dict[str, Any] = {"va": "center", "parse_math": False, "color": INK}
    figure.text(LEFT, _TITLE, title, size=14, weight="bold", **look)
    figure.text(LEFT, _SUBTITLE, subtitle, size=NORMAL, **look)


def progress(history: History) -> str:
    """Return a line such as "episode 3, step 5 of 20 · reward 2 · regret 1.5", sums over the whole trial."""
    place = f"episode {len(history.episodes)}, step {history.current.num_steps} of {history.horizon}"
    return f"{place} · {sums(history)}"


def sums(history: History) -> str:
    """Return the rewards so far and, if it is known, the regret so far."""
    regret = "" if history.regret is None else f" · regret {history.regret:.1f}"
    return f"reward {plain(float(history.rewards.sum()))}{regret}"


def plain(number: float) -> str:
    """Return a whole number without decimals, and any other with one."""
    return _minus(f"{number:.0f}" if float(number).is_integer() else f"{number:.1f}")


def _minus(number: str) -> str:
    return number.replace("-", "−")


def returns(figure: Figure, box: Box, history: History) -> None:
    """Draw a bar for the return of each episode, of the last ones if there are many; an unfinished in NOW."""
    episodes = history.episodes[-_MOST_BARS:]
    first = len(history.episodes) - len(episodes) + 1
    values = np.array([episode.total_reward for episode in episodes])
    numbers = np.arange(first, first + len(episodes))
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    high = high if high > low else low + 1
    panel = Panel(figure, box, (first - 0.6, max(first + 4, int(numbers[-1])) + 0.6), (low, high))
    colours = [SEEN] * (len(episodes) - 1) + [SEEN if history.current.ended else NOW]
    panel.bars(numbers, values, facecolors=colours)
    panel.ruled("return of each episode", whole_numbers(*panel.x), "episode", steps=3)


def whole_numbers(low: float, high: float, most: int = 6) -> list[float]:
    """Return a few whole numbers between two numbers."""
    ticks = MaxNLocator(most, integer=True).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def key(
    figure: Figure, place: tuple[float, float], entries: Sequence[tuple[str, dict[str, Any]]], row: bool
) -> None:
    """Explain symbols in words, from ``place`` to the right (in a row) or downward.

    Args:
        figure: to draw into.
        place: left end and height of the first entry, as shares of the figure.
        entries: words, and the look of a marker or (with ``lw``) a short line.
        row: whether entries stand beside each other.
    """
    panel = Panel(figure, (0, 0, 1, 1), (0, 1), (0, 1))
    left, height = place
    for words, look in entries:
        across = [left, left + 0.03] if "lw" in look else [left + 0.015]
        panel.line(across, [height] * len(across), **look)
        panel.words(left + 0.042, height, words, ha="left", va="center_baseline")
        left, height = (left + 0.065 + _LETTER * len(words), height) if row else (left, height - 0.05)


def rectangles(left: Numbers, bottom: Numbers, width: Numbers, height: Numbers) -> NDArray[np.float64]:
    """Return the corners of rectangles, [n, 4, 2]."""
    x = np.stack(np.broadcast_arrays(left, left, left + width, left + width), axis=-1)
    y = np.stack(np.broadcast_arrays(bottom, bottom + height, bottom + height, bottom), axis=-1)
    return np.stack(np.broadcast_arrays(x, y), axis=-1).astype(float)


def shades(colour: str, amounts: Numbers) -> NDArray[np.float64]:
    """Return colours from white (0) to ``colour`` (1), [..., 3]."""
    share = np.clip(np.asarray(amounts, float), 0, 1)[..., None]
    colours: NDArray[np.float64] = 1 - share * (1 - np.array(to_rgb(colour)))
    return colours


def parameter(tasks: Tasks, name: str, row: int) -> NDArray[Any]:
    """Return a parameter of one task in NumPy; TypeError for tasks without tensors."""
    if not isinstance(tasks, TensorTasks):
        raise TypeError(f"expected TensorTasks with {name!r}, got {type(tasks).__name__}")
    return np.asarray(tasks.parameters[name][row].cpu().numpy())


def arrows(
    panel: Panel, start: Numbers, end: Numbers, widths: Numbers, gap: float, bend: float, **look: Any
) -> None:
    """Draw bent arrows from circle to circle; an arrow and the one back bend to different sides.

    Args:
        panel: with the same unit along both axes.
        start: the middles of the first circles, [n, 2].
        end: the middles of the second circles, [n, 2].
        widths: in points, [n].
        gap: from the middle of a circle to its arrows.
        bend: how far the middle of an arrow is from the straight line, as a share of its length.
        look: ``colors`` of all, or of each.
    """
    start, end, widths = np.asarray(start, float), np.asarray(end, float), np.asarray(widths, float)
    along = end - start
    aside = bend * np.stack([-along[:, 1], along[:, 0]], axis=1)
    middle = start + along / 2 + 2 * aside  # of a parabola that passes at half of this height
    start, end = _towards(start, middle, gap), _towards(end, middle, gap)
    share = np.linspace(0, 1, 20)[:, None, None]
    curves = (1 - share) ** 2 * start + 2 * share * (1 - share) * middle + share**2 * end  # [20, n, 2]
    panel.lines(curves.swapaxes(0, 1), linewidths=widths, **look)
    unit = _towards(end, middle, 1.0) - end  # from the tip backward, of length 1
    across = np.stack([-unit[:, 1], unit[:, 0]], axis=1)
    size = (0.3 * gap + 0.045 * gap * widths)[:, None]
    tips = np.stack([end, end + size * (2 * unit + across), end + size * (2 * unit - across)], axis=1)
    panel.shapes(tips, facecolors=look["colors"], antialiased=True)


def _towards(place: NDArray[Any], other: NDArray[Any], distance: float) -> NDArray[Any]:
    """Return the places at a distance from ``place``, on the way to ``other``."""
    way = other - place
    moved: NDArray[Any] = place + distance * way / np.linalg.norm(way, axis=1, keepdims=True).clip(1e-9)
    return moved
