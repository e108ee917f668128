"""Figures of an evaluation, drawn from its files and never from live objects."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rl2meta.errors import UserError
from rl2meta.files import write_atomically, writing
from rl2meta.reports import AgentReport, EvaluationReport, knows_regret, read_evaluation

# Okabe and Ito's palette, which colour-blind readers can tell apart; the trained agent gets the first.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555", "#8C564B")
_INK, _FAINT, _GRID = "#222222", "#8A8A8A", "#E8E8E8"
_BAYES, _ORACLE = (0, (5, 3)), (0, (1, 2))  # line styles: on, off
_SQUASHING = 2.5  # an agent whose final regret is this many times the next one's leaves the axis
_HEADROOM = 1.15
_LINE = 0.066  # the height of a line of text, as a share of the axis
_LETTERS_IN_SIZE_1 = 15 * 95  # that fit into the figure's width
_LETTER = 0.0078  # the width of a letter, as a share of the figure


def plot_evaluation(folder: Path) -> Path:
    """Draw ``plot_regret`` where the family's optimum is known and ``plot_returns`` elsewhere."""
    return plot_regret(folder) if knows_regret(folder) else plot_returns(folder)


def plot_regret(folder: Path) -> Path:
    """Draw the cumulative regret and the mean returns of an evaluation to regret.png, and return its path.

    A diamond and a dashed line mark the best that an agent can do that knows the law but not the task.

    Args:
        folder: an evaluation folder with evaluation.json and regret.csv.

    Raises:
        UserError: if a file is missing or not as expected, or the family has no known optimum.
    """
    if not knows_regret(folder):
        raise UserError(
            f"expected an evaluation with regrets in {folder}, got one of a family with no known optimum; "
            "draw its returns"
        )
    evaluation = read_evaluation(folder, "regret.csv")
    figure, left, right = _figure(evaluation, "Regret")
    goal = evaluation.bayes_regret
    _draw_curves(left, evaluation.agents, goal, "Cumulative regret (lower is better)")
    left.set_ylim(top=_regret_limit(evaluation.agents))
    _label_curves(left, evaluation.agents, goal)
    _draw_returns(right, evaluation)
    return _write(figure, folder / "regret.png")


def plot_returns(folder: Path) -> Path:
    """Draw the cumulative and the mean returns of an evaluation to returns.png, and return its path.

    Args:
        folder: an evaluation folder with evaluation.json and returns.csv.

    Raises:
        UserError: if a file is missing or not as expected.
    """
    evaluation = read_evaluation(folder, "returns.csv")
    figure, left, right = _figure(evaluation, "Return")
    _draw_curves(left, evaluation.agents, evaluation.bayes, "Cumulative return (higher is better)")
    _label_curves(left, evaluation.agents, evaluation.bayes)
    _draw_returns(right, evaluation)
    return _write(figure, folder / "returns.png")


def _colour(agent: AgentReport) -> str:
    index = agent.place
    return _COLOURS[index] if index < len(_COLOURS) else _COLOURS[1 + (index - 1) % (len(_COLOURS) - 1)]


def _is_bold(agent: AgentReport) -> bool:
    return agent.place == 0


def _text_style(agent: AgentReport) -> dict[str, Any]:
    return {"color": _colour(agent), "weight": "bold" if _is_bold(agent) else "normal"}


def _figure(evaluation: EvaluationReport, what: str) -> tuple[Figure, Axes, Axes]:
    """Return an empty figure whose two axes leave room for the longest name beside each."""
    figure = Figure(figsize=(12, 4.9), dpi=150, facecolor="white")  # not pyplot's: no global state
    names = _LETTER * max(
        len(name) for name in ("Bayes-optimal", *(agent.name for agent in evaluation.agents))
    )
    width = max(0.3, 0.785 - 2 * names)
    left = figure.add_axes((0.05, 0.16, 0.58 * width, 0.64))
    right = figure.add_axes((0.905 - 0.42 * width, 0.16, 0.42 * width, 0.64))
    _write_title(figure, 0.95, 15, f"{what} on {evaluation.title}", "bold")
    _write_title(figure, 0.89, 11, evaluation.subtitle, "normal")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_FAINT)
        axes.tick_params(colors=_FAINT, labelcolor=_INK, labelsize=11)
        axes.set_axisbelow(True)
        axes.ticklabel_format(useOffset=False)
    return figure, left, right


def _write_title(figure: Figure, height: float, size: float, text: str, weight: str) -> None:
    fitting = min(size, _LETTERS_IN_SIZE_1 / len(text))
    figure.text(0.012, height, text, size=fitting, weight=weight, color=_INK, va="center", parse_math=False)


def _regret_limit(agents: Sequence[AgentReport]) -> float | None:
    """Return the top of the axis, below the worst agent's regret where that would squash all others."""
    finals = sorted(float(agent.mean[-1]) for agent in agents)
    if len(finals) < 3 or finals[-1] <= _SQUASHING * finals[-2] or finals[-2] <= 0:
        return None
    return _HEADROOM * finals[-2]


def _draw_curves(axes: Axes, agents: Sequence[AgentReport], goal: float | None, title: str) -> None:
    for rank, agent in enumerate(agents):
        front = 3 + len(agents) - rank
        axes.fill_between(
            agent.step, agent.low, agent.high, color=_colour(agent), alpha=0.2, lw=0, zorder=front
        )
        width, style = 3.4 if _is_bold(agent) else 1.8, "-" if agent.place < len(_COLOURS) else "--"
        axes.plot(agent.step, agent.mean, color=_colour(agent), lw=width, ls=style, zorder=front)
    end = max(agent.step[-1] for agent in agents)
    if goal is not None:  # known for the whole trial only: a mark at its end, not a line
        axes.plot(end, goal, "D", color=_INK, ms=7, clip_on=False, zorder=20)
    axes.set_title(title, loc="left", size=12, color=_INK, pad=10)
    axes.set_xlabel("interactions with a new task (bands: 95 %)", size=11, color=_INK)
    axes.set_xlim(0, end)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=_GRID, lw=0.8)
    if all(agent.mean.min() >= 0 for agent in agents):
        axes.set_ylim(bottom=0)


def _label_curves(axes: Axes, agents: Sequence[AgentReport], goal: float | None) -> None:
    """Write each agent's name and final value where its curve ends, and the goal's beside its line."""
    labels = [(float(agent.mean[-1]), agent.name, _text_style(agent)) for agent in agents]
    if goal is not None:
        labels.append((goal, "Bayes-optimal", {"color": _INK}))
    bottom, top = axes.get_ylim()
    heights = [(value - bottom) / (top - bottom) for value, _, _ in labels]
    decimals = _decimals(value for value, _, _ in labels)
    places = _spread(heights, _LINE)
    for (value, name, style), height, place in zip(labels, heights, places, strict=True):
        _write_label(axes, f"{name}  {value:.{decimals}f}", style, height, place)


def _write_label(axes: Axes, text: str, style: dict[str, Any], height: float, place: float) -> None:
    frame: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
    if height > 1:
        text += " ↑"
    else:
        axes.plot([1.005, 1.035], [height, place], color=style["color"], lw=1, **frame)
    axes.text(1.045, place, text, size=11.5, va="center_baseline", parse_math=False, **style, **frame)


def _decimals(values: Iterable[float]) -> int:
    """Return the decimals that give the largest of ``values`` three digits, such as 33.3 or 0.512."""
    largest = max(abs(value) for value in values)
    return min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 1


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return places in [0, 1] near ``heights``, in the same order and at least ``gap`` apart.

    The least squares answer, by pooling neighbours that are too close (isotonic regression).
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


def _draw_returns(axes: Axes, evaluation: EvaluationReport) -> None:
    """Draw the mean returns as dots, the best on top, with the bounds that no agent can pass."""
    ranked = sorted(evaluation.agents, key=lambda agent: agent.mean_return)
    largest = max(agent.margin for agent in ranked)
    margin = -math.floor(math.log10(largest)) if largest > 0 else 0  # so that ± does not round to 0
    decimals = max(min(6, margin), _decimals(agent.mean_return for agent in ranked))
    for row, agent in enumerate(ranked):
        _draw_return(axes, row, agent, decimals)
    axes.set_yticks(range(len(ranked)), [agent.name for agent in ranked])
    for label, agent in zip(axes.get_yticklabels(), ranked, strict=True):
        label.set(size=11.5, parse_math=False, **_text_style(agent))
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.margins(x=0.1)
    axes.grid(axis="x", color=_GRID, lw=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Mean return (higher is better)", loc="left", size=12, color=_INK, pad=10)
    _draw_bounds(axes, evaluation, decimals)


def _draw_return(axes: Axes, row: int, agent: AgentReport, decimals: int) -> None:
    value, margin = agent.mean_return, agent.margin
    size, width = (9.5, 2.6) if _is_bold(agent) else (7, 1.8)
    axes.errorbar(
        value, row, xerr=margin, fmt="o", color=_colour(agent), ms=size, lw=width, capsize=4, zorder=4
    )
    text = f"{value:.{decimals}f} ± {margin:.{decimals}f}"
    beside = axes.get_yaxis_transform()
    axes.text(1.04, row, text, size=11, va="center_baseline", transform=beside, **_text_style(agent))


def _draw_bounds(axes: Axes, evaluation: EvaluationReport, decimals: int) -> None:
    bounds = (("Bayes-optimal", evaluation.bayes, _BAYES), ("task known", evaluation.oracle, _ORACLE))
    known = [(name, value, style) for name, value, style in bounds if value is not None]
    for name, value, line in known:
        axes.axvline(value, color=_INK, lw=1.5, ls=line, zorder=3, label=f"{name}  {value:.{decimals}f}")
    if known:
        style: dict[str, Any] = {"fontsize": 10.5, "labelcolor": _INK, "frameon": False, "columnspacing": 1.5}
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.085), ncols=2, **style)


def _write(figure: Figure, path: Path) -> Path:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    with writing(path):
        write_atomically(path, content.getvalue())
    return path
