"""The figure of the learning suite: how the score of each config grows with the seconds of training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rl2meta import drawing
from rl2meta.colours import TRAINED

_TITLE = "Mean return on held-out tasks against seconds of training"
_SUBTITLE = "a line for each training seed, dots where it reaches the target; bands: 95 % over tasks"
_LOWEST = 20  # the bottom is this percentile of the scores: the first seconds would squash the rest
_TARGET = (0, (5, 3))  # on, off
_TICKS = (1.0, 2.0, 5.0)
_MANY_DECADES = 2.5  # an axis of more than these has ticks at powers of ten alone


def plot_learning(report: Mapping[str, Any], path: Path) -> Path:
    """Draw the score against the seconds of training, a panel for each config; return ``path``.

    Args:
        report: what ``measure_learning`` returns or saves, with at least one config.
        path: where the PNG file is written; an old file is replaced.

    Raises:
        UserError: if the file cannot be written.
    """
    figure = drawing.titled_figure(_TITLE, _SUBTITLE)
    share = 0.985 / len(report)
    for place, (name, said) in enumerate(report.items()):
        axes = drawing.add_axes(figure, place * share + 0.05, share - 0.06)
        _draw_panel(axes, name, said)
    return drawing.save(figure, path)


def _draw_panel(axes: Axes, name: str, said: Mapping[str, Any]) -> None:
    for run in said["runs"]:
        _draw_run(axes, run)
    axes.axhline(said["target"], color=drawing.INK, lw=1.5, ls=_TARGET, zorder=2)
    axes.annotate(
        f"target {said['target']:g}",
        (0, said["target"]),
        xycoords=axes.get_yaxis_transform(),
        xytext=(4, 4),
        textcoords="offset points",
        size=10.5,
        color=drawing.INK,
        bbox={"facecolor": "white", "lw": 0, "pad": 0.5},  # so that no grid line crosses the text
    )
    points = [point for run in said["runs"] for point in run["curve"]]
    _scale(axes, points, said["target"])
    axes.set_title(name, loc="left", size=12, color=drawing.INK, pad=10)
    reached = _reached([run["seconds_to_score"] for run in said["runs"]])
    axes.set_xlabel(f"seconds of training\n{reached}", size=11, color=drawing.INK)
    axes.grid(axis="y", color=drawing.GRID, lw=0.8)


def _draw_run(axes: Axes, run: Mapping[str, Any]) -> None:
    colour = TRAINED[0]
    seconds, score, error = (
        np.array([point[key] for point in run["curve"]]) for key in ("seconds", "score", "standard_error")
    )
    low, high = score - 1.96 * error, score + 1.96 * error
    axes.fill_between(seconds, low, high, color=colour, alpha=0.12, lw=0, zorder=2)
    axes.plot(seconds, score, color=colour, lw=1.3, zorder=4)
    if run["seconds_to_score"] is not None:
        first = int(np.argmax(seconds == run["seconds_to_score"]))
        axes.plot(seconds[first], score[first], "o", color=colour, mec="white", mew=1, ms=8, zorder=5)


def _reached(times: Sequence[float | None]) -> str:
    """Say in words when the first and the last seed reached the target."""
    known = sorted(time for time in times if time is not None)
    if not known:
        return "target not reached"
    first, last = (f"{time:,.0f}" if time >= 10 else f"{time:.1f}" for time in (known[0], known[-1]))
    when = f"target after {first if first == last else f'{first} – {last}'} s"
    return when if len(known) == len(times) else f"{when} ({len(known)} of {len(times)} seeds)"


def _scale(axes: Axes, points: Sequence[Mapping[str, float]], target: float) -> None:
    """Show all seconds, and the upper part of the scores, in which the target lies."""
    seconds = [point["seconds"] for point in points]
    axes.set_xscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlim(0.95 * min(seconds), 1.05 * max(seconds))
    many = max(seconds) > 10**_MANY_DECADES * min(seconds)
    axes.xaxis.set_major_locator(LogLocator(subs=_TICKS[:1] if many else _TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    low = min(target, float(np.percentile([point["score"] for point in points], _LOWEST)))
    high = max(target, max(point["score"] + 1.96 * point["standard_error"] for point in points))
    span = (high - low) or 1.0
    axes.set_ylim(low - 0.05 * span, high + 0.1 * span)
