"""What all figures share: colours, titles, labels that do not overlap, and how a figure is saved."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl2meta.files import write_atomically, writing
from rl2meta.reports import AgentReport, EvaluationReport

# Okabe and Ito's palette, which colour-blind readers can tell apart. Trained agents get the first colours.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555", "#8C564B")
INK, FAINT, GRID = "#222222", "#8A8A8A", "#E8E8E8"
LETTER = 0.0078
"""The width of a letter, as a share of the figure."""
_LINE = 0.066  # the height of a line of text, as a share of the axis
_LETTERS_IN_SIZE_1 = 15 * 95  # so many letters of size 1 fit into the figure's width
_SMALLEST = 7.5  # the smallest size that can be read
_LONGEST_NAME = 28
_DOTTED = (0, (1, 2))  # on, off
_STYLES = ("-", "--", ":")  # of the curves that have the same colour


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


def colour(agent: AgentReport) -> str:
    """Return the agent's colour; agents share a colour only if there are more agents than colours."""
    index = agent.place
    return COLOURS[index] if index < len(COLOURS) else COLOURS[1 + (index - 1) % (len(COLOURS) - 1)]


def line_style(agent: AgentReport) -> dict[str, Any]:
    """Return the style of the agent's curve: bold if trained; dashed, then dotted, if its colour was used."""
    uses = max(0, agent.place - 1) // (len(COLOURS) - 1)  # of its colour, by agents before it
    return {
        "color": colour(agent),
        "lw": 3.4 if agent.is_subject else 1.8,
        "ls": _STYLES[min(uses, len(_STYLES) - 1)],
    }


def text_style(agent: AgentReport) -> dict[str, Any]:
    """Return the style of the agent's name and figures."""
    return {"color": colour(agent), "weight": "bold" if agent.is_subject else "normal"}


def short(name: str) -> str:
    """Return the name, or only its end if it is too long for a figure."""
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]


def new_figure(evaluation: EvaluationReport, what: str) -> Figure:
    """Return a figure that has only its title."""
    return titled_figure(f"{what} on {evaluation.title}", evaluation.subtitle)


def titled_figure(title: str, subtitle: str) -> Figure:
    """Return a figure that has only a title and, below it, a subtitle."""
    figure = Figure(figsize=(12, 4.9), dpi=150, facecolor="white")  # not pyplot's: no global state
    _write_title(figure, 0.95, 15, title, "bold")
    _write_title(figure, 0.89, 11, subtitle, "normal")
    return figure


def add_axes(figure: Figure, left: float, width: float) -> Axes:
    """Return new axes in the common style; ``left`` and ``width`` are shares of the figure."""
    axes = figure.add_axes((left, 0.16, width, 0.64))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=11)
    axes.set_axisbelow(True)
    axes.ticklabel_format(useOffset=False)
    return axes


def widest_name(evaluation: EvaluationReport) -> float:
    """Return the width of the longest name, as a share of the figure."""
    return LETTER * max(len(short(name)) for name in ("Bayes-optimal", *(a.name for a in evaluation.agents)))


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Write each curve's name and final value beside the axes, and join them to the end of the curve."""
    (first, last), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    heights = [(label.value - bottom) / (top - bottom) for label in labels]
    digits = decimals(label.value for label in labels)
    for label, height, place in zip(labels, heights, spread(heights, _LINE), strict=True):
        end = 1.0 if label.end is None else (label.end - first) / (last - first)
        _write_label(
            axes, f"{short(label.name)}  {label.value:.{digits}f}", label.style, (end, height), place
        )


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


def _write_title(figure: Figure, height: float, size: float, text: str, weight: str) -> None:
    fitting = max(_SMALLEST, min(size, _LETTERS_IN_SIZE_1 / len(text)))
    letters = int(_LETTERS_IN_SIZE_1 / fitting)
    text = text if len(text) <= letters else f"{text[: letters - 1]}…"  # evaluation.json has the whole text
    figure.text(0.012, height, text, size=fitting, weight=weight, color=INK, va="center", parse_math=False)
