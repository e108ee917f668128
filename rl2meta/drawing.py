"""What all figures share: colours, titles, labels that do not overlap, and how a figure is saved."""

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl2meta.colours import FAINT as FAINT
from rl2meta.colours import GRID as GRID
from rl2meta.colours import INK as INK
from rl2meta.files import write_atomically, writing
from rl2meta.reports import AgentReport, EvaluationReport

LETTER = 0.0078
"""The width of a letter, as a share of the figure."""
_LINE = 0.066  # the height of a line of text, as a share of the axis
_LETTERS_IN_SIZE_1 = 15 * 95  # so many letters of size 1 fit into the figure's width
_SMALLEST = 7.5  # the smallest size that can be read
_LONGEST_NAME = 28
_ROW = 4.9  # inches
_MOST_LINES = 8  # of a subtitle
_SPACING = 1.35  # of lines of text, in heights of a letter
_DOTTED = (0, (1, 2))  # on, off


class EndLabel(NamedTuple):
    """A label beside the axes, at the end of a curve.

    Attributes:
        name: the name of the curve.
        value: the last value of the curve.
        style: the style of the text; the connector has the same colour.
        end: where the curve ends on the horizontal axis; None if it ends where the axis ends.
    """

    name: str
    value: float
    style: dict[str, Any]
    end: float | None = None


def line_style(agent: AgentReport) -> dict[str, Any]:
    """Return the style of the agent's curve: bold if trained."""
    return {"color": agent.colour, "lw": 3.4 if agent.is_subject else 1.8}


def text_style(agent: AgentReport) -> dict[str, Any]:
    """Return the style of the agent's name and figures."""
    return {"color": agent.colour, "weight": "bold" if agent.is_subject else "normal"}


def short(name: str) -> str:
    """Return the name, or only its end if it is too long for a figure."""
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]


def new_figure(evaluation: EvaluationReport, what: str, rows: int = 1) -> Figure:
    """Return a figure that has only its title, with room for ``rows`` of axes."""
    title = f"{what} {'in' if ' trials on ' in evaluation.title else 'on'} {evaluation.title}"
    return titled_figure(title, evaluation.subtitle, rows)


def titled_figure(title: str, subtitle: str, rows: int = 1) -> Figure:
    """Return a figure that has only a title and, below it, a subtitle, with room for ``rows`` of axes."""
    size, lines = _wrapped(subtitle)
    spacing = _SPACING * size / 72  # inches
    height = _ROW * rows + (len(lines) - 1) * spacing
    figure = Figure(figsize=(12, height), dpi=150, facecolor="white")  # not pyplot's: no global state
    of_title = max(_SMALLEST, min(15, _LETTERS_IN_SIZE_1 / len(title)))
    _write(figure, 0.05 * _ROW, of_title, title, "bold")
    for number, line in enumerate(lines):
        _write(figure, 0.11 * _ROW + number * spacing, size, line, "normal")
    return figure


def add_axes(figure: Figure, left: float, width: float, row: int = 0) -> Axes:
    """Return new axes in the common style in a row; ``left`` and ``width`` are shares of the figure."""
    height = figure.get_figheight()
    below = int(height / _ROW) - 1 - row  # rows; above the first one, the lines of a long subtitle take more
    bottom = (below + 0.16) * _ROW  # inches
    top = 0.64 if row == 0 else 0.74  # a share of the row; only the first has titles above it
    axes = figure.add_axes((left, bottom / height, width, top * _ROW / height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=11)
    axes.set_axisbelow(True)
    axes.ticklabel_format(useOffset=False)
    return axes


def widest_name(evaluation: EvaluationReport) -> float:
    """Return the width of the longest name, as a share of the figure."""
    return LETTER * max(len(short(name)) for name in ("Bayes-optimal", *(a.name for a in evaluation.agents)))


def label_ends(axes: Axes, labels: Sequence[EndLabel], sign: str = "") -> None:
    """Write each curve's name and final value beside the axes, and join them to the end of the curve.

    Args:
        axes: with their final limits.
        labels: one for each curve.
        sign: ``+`` to write the sign of positive values, too.
    """
    (first, last), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    heights = _heights(axes, [label.value for label in labels])
    shared = decimals(label.value for label in labels) if not sign else decimals((bottom, top))
    logarithmic = axes.get_yscale() == "log"  # values of any size stand there side by side
    for label, height, place in zip(labels, heights, spread(heights, _LINE), strict=True):
        end = 1.0 if label.end is None else (label.end - first) / (last - first)
        digits = decimals([label.value]) if logarithmic else shared
        _write_label(
            axes, f"{short(label.name)}  {label.value:{sign}.{digits}f}", label.style, (end, height), place
        )


def _heights(axes: Axes, values: Sequence[float]) -> list[float]:
    """Return where values stand on the vertical axis, of any scale: 0 at its lower end, 1 at its top."""
    to_axis = axes.transData + axes.transAxes.inverted()
    return [float(to_axis.transform((axes.get_xlim()[0], value))[1]) for value in values]


def _write_label(
    axes: Axes, text: str, style: dict[str, Any], end: tuple[float, float], place: float
) -> None:
    frame: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "color": style["color"]}
    across, height = end
    if not 0 <= height <= 1:
        text += " ↑" if height > 1 else " ↓"
    else:
        axes.plot([1.005, 1.035], [height, place], lw=1, **frame)
        if across < 0.995:  # the curve ends early; the dotted line is not data
            axes.plot([across], [height], "o", ms=5, zorder=20, **frame)
            axes.plot([across, 1.005], [height, height], lw=1, ls=_DOTTED, **frame)
    look = {**frame, **style}
    axes.text(1.045, place, text, size=11.5, va="center_baseline", parse_math=False, **look)


def decimals(values: Iterable[float]) -> int:
    """Return the decimals that give the largest of ``values`` three digits, such as 33.3 or 0.512."""
    largest = max(abs(value) for value in values)
    return min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 1


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return places in [0, 1] near ``heights``, in the same order and at least ``gap`` apart.

    The places minimise the squared distances to ``heights``; neighbours that are too close are pooled
    (isotonic regression).
    """
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(order))
    pools: list[list[float]] = []
    for height in np.clip(np.asarray(heights)[order], 0, 1) - steps:
        pools.append([float(height)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    fitted = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    places = np.empty(len(order))
    places[order] = np.clip(fitted, 0, max(0.0, 1 - steps[-1])) + steps
    return [float(place) for place in places]


def save(figure: Figure, path: Path, software: str | None = None) -> Path:
    """Write the whole figure or nothing, and return the path; the same figure gives the same bytes.

    Args:
        figure: what is written.
        path: of the PNG file.
        software: its maker, for the file's text chunk "Software"; None: no such chunk.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": software})
    with writing(path):
        write_atomically(path, content.getvalue())
    return path


def _wrapped(text: str) -> tuple[float, list[str]]:
    """Return the largest size in which a text fits into so many lines, and these lines; at most eight."""
    for size, most in ((11.0, 1), (9.5, 2), (_SMALLEST, _MOST_LINES)):
        lines = textwrap.wrap(text, int(_LETTERS_IN_SIZE_1 / size), break_on_hyphens=False) or [""]
        if len(lines) <= most:
            return size, lines
    lines = [*lines[: _MOST_LINES - 1], f"{lines[_MOST_LINES - 1][:-1]}…"]
    return _SMALLEST, lines  # evaluation.json has the whole text


def _write(figure: Figure, below_top: float, size: float, text: str, weight: str) -> None:
    """Write a line of text ``below_top`` inches below the top of the figure."""
    place = 1 - below_top / figure.get_figheight()
    letters = int(_LETTERS_IN_SIZE_1 / size)
    text = text if len(text) <= letters else f"{text[: letters - 1]}…"
    figure.text(0.012, place, text, size=size, weight=weight, color=INK, va="center", parse_math=False)
