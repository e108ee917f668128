"""Draws learning curves: how the score of agents grows with their training, with bands over seeds."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from rl2meta import drawing
from rl2meta.colours import TRAINED
from rl2meta.drawing import EndLabel

MADE_BY = "rl2meta plot"
"""How a figure of learning curves names its maker, in the PNG's text chunk "Software"."""
_CEILING, _REFERENCE = (0, (5, 3)), (0, (1, 2))  # line styles: on, off
_STYLES = ("-", "--", ":")  # of the curves that have the same colour
_WORST, _SQUASHING = 85, 1.8  # see _limits
_UNITS = ((1e9, " G"), (1e6, " M"), (1e3, " k"))


class SeedCurve(NamedTuple):
    """The points of one training.

    Attributes:
        seed: its training seed.
        x: where the agent was judged, [points], rising.
        y: its score there, [points].
    """

    seed: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]


class LearningCurve(NamedTuple):
    """The curve of a run or of a group of runs.

    Attributes:
        name: of the run or the group.
        seeds: the trainings, at least one.
        x: the points of the mean, [points].
        mean, low, high: mean over seeds and its 95 % interval, [points]; low and high are None for one seed.
    """

    name: str
    seeds: Sequence[SeedCurve]
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64] | None
    high: NDArray[np.float64] | None


class Level(NamedTuple):
    """A horizontal line.

    Attributes:
        name: of a ceiling or a reference.
        value: its score.
        is_ceiling: whether it is an exact value that no agent can beat.
    """

    name: str
    value: float
    is_ceiling: bool


class LearningPicture(NamedTuple):
    """What a figure of learning curves shows.

    Attributes:
        title, subtitle: they say what is drawn, and of which tasks.
        across: what the horizontal axis counts.
        up: what the vertical axis counts.
        lower_is_better: whether the score is a regret.
        curves: at least one.
        levels: ceilings and references.
    """

    title: str
    subtitle: str
    across: str
    up: str
    lower_is_better: bool
    curves: Sequence[LearningCurve]
    levels: Sequence[Level]


def plot_learning_curves(picture: LearningPicture, path: Path) -> Path:
    """Draw the curves over the length of training to a PNG file, and return its path.

    A group is a bold mean with a band, and a thin line for each of its seeds. The labels at the right say the
    last value of each curve. The vertical axis may cut off the first scores, which are the worst.

    Args:
        picture: what is drawn.
        path: where the PNG file is written; an old file is replaced.

    Raises:
        UserError: if the file cannot be written.
    """
    figure = drawing.titled_figure(picture.title, picture.subtitle)
    names = [*(curve.name for curve in picture.curves), *(level.name for level in picture.levels)]
    label = drawing.LETTER * (max(len(drawing.short(name)) for name in names) + 12)
    axes = drawing.add_axes(figure, 0.06, 0.9 - label)
    for place, curve in enumerate(picture.curves):
        _draw_curve(axes, curve, place, front=4 + len(picture.curves) - place)
    _scale(axes, picture)
    for level in picture.levels:
        axes.axhline(level.value, **_level_style(level), zorder=2)
    drawing.label_ends(axes, [*_curve_labels(picture.curves), *_level_labels(picture.levels)])
    return drawing.save(figure, path, MADE_BY)


def _draw_curve(axes: Axes, curve: LearningCurve, place: int, front: int) -> None:
    style = _curve_style(place)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.16, lw=0, zorder=2)
        for seed in curve.seeds:
            axes.plot(seed.x, seed.y, color=style["color"], lw=0.8, alpha=0.55, zorder=3)
    axes.plot(curve.x, curve.mean, **style, zorder=front)
    if len(curve.x) == 1:  # a line of one point is not seen
        axes.plot(curve.x, curve.mean, "o", color=style["color"], ms=7, zorder=front)


def _curve_style(place: int) -> dict[str, Any]:
    uses = min(place // len(TRAINED), len(_STYLES) - 1)
    return {"color": TRAINED[place % len(TRAINED)], "lw": 2.6, "ls": _STYLES[uses]}


def _level_style(level: Level) -> dict[str, Any]:
    if level.is_ceiling:
        return {"color": drawing.INK, "lw": 1.5, "ls": _CEILING}
    return {"color": drawing.FAINT, "lw": 1.2, "ls": _REFERENCE}


def _curve_labels(curves: Sequence[LearningCurve]) -> list[EndLabel]:
    return [
        EndLabel(
            curve.name,
            float(curve.mean[-1]),
            {"color": _curve_style(place)["color"], "weight": "bold"},
            float(curve.x[-1]),
        )
        for place, curve in enumerate(curves)
    ]


def _level_labels(levels: Sequence[Level]) -> list[EndLabel]:
    return [
        EndLabel(level.name, level.value, {"color": drawing.INK if level.is_ceiling else "#666666"})
        for level in levels
    ]


def _scale(axes: Axes, picture: LearningPicture) -> None:
    """Show the whole training, and the scores that tell its agents apart."""
    last = max(float(seed.x[-1]) for curve in picture.curves for seed in curve.seeds)
    axes.set_xlim(0, last)
    axes.set_ylim(*_limits(picture))
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _counted(value, last)))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_title(picture.up, loc="left", size=12, color=drawing.INK, pad=10)
    axes.set_xlabel(f"{picture.across}{_said_levels(picture.levels)}", size=11, color=drawing.INK)
    axes.grid(axis="y", color=drawing.GRID, lw=0.8)


def _said_levels(levels: Sequence[Level]) -> str:
    """Say in a line of its own what the horizontal lines are."""
    ceilings = ["dashed: what no agent can beat"] if any(level.is_ceiling for level in levels) else []
    references = [] if all(level.is_ceiling for level in levels) else ["dotted: reference algorithms"]
    return "\n" + "; ".join(ceilings + references) if levels else ""


def _limits(picture: LearningPicture) -> tuple[float, float]:
    """Return the ends of the vertical axis.

    All scores from the best one on are shown, with the ceiling next to them, unless the worst ones, which are
    the first of a training, would squash the rest: then the axis ends a little beyond the 85th percentile of
    the scores. Other lines are seen if they lie within; their labels have an arrow if they do not.
    """
    sign = 1.0 if picture.lower_is_better else -1.0  # so that lower is better
    scores = sign * np.concatenate([seed.y for curve in picture.curves for seed in curve.seeds])
    ceiling = max((sign * level.value for level in picture.levels if level.is_ceiling), default=math.inf)
    best, worst = min(float(scores.min()), ceiling), float(scores.max())
    most = float(np.percentile(scores, _WORST))
    if worst - best > _SQUASHING * (most - best) > 0:
        worst = best + _SQUASHING * (most - best)
    span = (worst - best) or abs(best) or 1.0
    low, high = best - 0.06 * span, worst + 0.06 * span
    if picture.lower_is_better and best >= 0:
        low = max(low, 0.0)
    return (low, high) if picture.lower_is_better else (-high, -low)


def _counted(value: float, most: float) -> str:
    """Return a number such as 2.5 M, in the unit of the largest number on the axis."""
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if most >= scale), (1.0, ""))
    return f"{value / scale:g}{unit}" if value else "0"
