"""Draws the figures of an evaluation, from its files and never from live objects."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rl2meta import drawing
from rl2meta.drawing import EndLabel
from rl2meta.errors import UserError
from rl2meta.reports import AgentReport, EvaluationReport, knows_regret, read_adaptation, read_evaluation

_BAYES, _ORACLE = (0, (5, 3)), (0, (1, 2))  # line styles: on, off
_SQUASHING = 2.5  # a curve may leave the axis if its final regret is this many times the next one's
_HEADROOM = 1.15
_MOST_MARKERS = 30
_MEETING = 0.07  # of the axis: closer curves can hardly be told apart
_ZOOMING = 0.3  # of the axis: trained agents further from the best reference get no closer look
_NEAR = 1.5  # times the largest distance of a trained agent to the best reference


def plot_evaluation(folder: Path) -> Path:
    """Draw ``plot_regret`` where the family's optimum is known and ``plot_returns`` elsewhere."""
    return plot_regret(folder) if knows_regret(folder) else plot_returns(folder)


def plot_regret(folder: Path) -> Path:
    """Draw the cumulative regret and the mean returns of an evaluation to regret.png, and return its path.

    A diamond and a dashed line mark the best result of an agent that knows the law but not the task. If the
    curve of a trained agent ends close to another, a second row shows these curves minus that of the best
    reference, with the intervals of the paired differences.

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
    close = _close_agents(evaluation)
    figure, left, right = _two_axes(evaluation, "Regret", rows=2 if close else 1)
    goal = evaluation.bayes_regret
    _draw_curves(left, evaluation.agents, goal, "Cumulative regret (lower is better)")
    left.set_ylim(top=_regret_limit(evaluation.agents))
    drawing.label_ends(left, _end_labels(evaluation.agents, goal))
    _draw_returns(right, evaluation)
    if close:
        _draw_gaps(figure, evaluation, close)
    return drawing.save(figure, folder / "regret.png")


def plot_returns(folder: Path) -> Path:
    """Draw the return of each episode and the mean returns of an evaluation to returns.png; return its path.

    Args:
        folder: an evaluation folder with evaluation.json, returns.csv and adaptation.csv.

    Raises:
        UserError: if a file is missing or not as expected.
    """
    evaluation = read_evaluation(folder, "returns.csv")
    figure, left, right = _two_axes(evaluation, "Return")
    _draw_episodes(left, read_adaptation(folder))
    _draw_returns(right, evaluation)
    return drawing.save(figure, folder / "returns.png")


def plot_adaptation(folder: Path) -> Path:
    """Draw the return of each episode over the episodes before it to adaptation.png, and return its path.

    The curve of an agent that plays several episodes with the same knowledge has steps of that width.

    Args:
        folder: an evaluation folder with evaluation.json and adaptation.csv.

    Raises:
        UserError: if a file is missing or not as expected.
    """
    evaluation = read_adaptation(folder)
    figure = drawing.new_figure(evaluation, "Return per episode")
    axes = drawing.add_axes(figure, 0.05, 0.82 - 1.1 * drawing.widest_name(evaluation))
    _draw_episodes(axes, evaluation)
    return drawing.save(figure, folder / "adaptation.png")


def _draw_episodes(axes: Axes, evaluation: EvaluationReport) -> None:
    """Draw the return of each episode, and that of an agent to which the task is known."""
    ends = [_draw_steps(axes, agent, evaluation.agents) for agent in evaluation.agents]
    title = "Return per episode after so many episodes (higher is better)"
    _finish_curves(axes, title, "episodes lived through before (bands: 95 %)", max(ends))
    labels = [
        EndLabel(agent.name, float(agent.mean[-1]), drawing.text_style(agent), end)
        for agent, end in zip(evaluation.agents, ends, strict=True)
    ]
    if evaluation.oracle is not None:
        axes.axhline(evaluation.oracle, color=drawing.INK, lw=1.5, ls=_ORACLE, zorder=2)
        labels.append(EndLabel("task known", evaluation.oracle, {"color": drawing.INK}))
    drawing.label_ends(axes, labels)


def _two_axes(evaluation: EvaluationReport, what: str, rows: int = 1) -> tuple[Figure, Axes, Axes]:
    """Return an empty figure whose first two axes leave room for the longest name beside each."""
    figure = drawing.new_figure(evaluation, what, rows)
    width = max(0.3, 0.785 - 2 * drawing.widest_name(evaluation))
    left = drawing.add_axes(figure, 0.05, 0.58 * width)
    return figure, left, drawing.add_axes(figure, 0.905 - 0.42 * width, 0.42 * width)


def _draw_steps(axes: Axes, agent: AgentReport, agents: Sequence[AgentReport]) -> float:
    """Draw an agent's return per episode, block by block; return where the curve ends."""
    starts, block = agent.step, agent.episodes_per_block
    x, mean, low, high = starts, agent.mean, agent.low, agent.high
    if block > 1 or len(starts) == 1:
        x = np.stack([starts, starts + block], axis=1).ravel()
        mean, low, high = (np.repeat(values, 2) for values in (mean, low, high))
    front = 3 + len(agents) - agent.place
    axes.fill_between(x, low, high, color=agent.colour, alpha=0.2, lw=0, zorder=2)
    axes.plot(x, mean, **drawing.line_style(agent), zorder=front)
    if len(starts) <= _MOST_MARKERS:
        size = 8 if agent.is_subject else 5
        axes.plot(starts, agent.mean, "o", color=agent.colour, ms=size, clip_on=False, zorder=front)
    return float(x[-1])


def _close_agents(evaluation: EvaluationReport) -> list[AgentReport]:
    """Return the agents near the trained ones, the best reference too, if their curves meet; or none."""
    agents = evaluation.agents
    subjects = [agent for agent in agents if agent.is_subject]
    others = [agent for agent in agents if not agent.is_subject]
    if evaluation.best is None or not any(np.isfinite(agent.gap[-1]) for agent in subjects):
        return []
    top = _regret_limit(agents) or max(float(agent.mean[-1]) for agent in agents)
    far = max(abs(float(agent.gap[-1])) for agent in subjects)
    if far > _ZOOMING * top:
        return []
    if not any(abs(a.mean[-1] - b.mean[-1]) < _MEETING * top for a in subjects for b in others):
        return []
    near = max(far, _MEETING * top)
    return [agent for agent in agents if agent.is_subject or abs(agent.gap[-1]) <= _NEAR * near]


def _draw_gaps(figure: Figure, evaluation: EvaluationReport, agents: Sequence[AgentReport]) -> None:
    """Draw the regret of close agents minus that of the best reference, in a row of its own."""
    axes = drawing.add_axes(figure, 0.05, 0.82 - 1.1 * drawing.widest_name(evaluation), row=1)
    for agent in agents:
        front = 3 + len(evaluation.agents) - agent.place
        axes.fill_between(agent.step, agent.gap_low, agent.gap_high, color=agent.colour, alpha=0.2, lw=0)
        axes.plot(agent.step, agent.gap, **drawing.line_style(agent), zorder=front)
    title = f"A closer look: regret minus that of {evaluation.best}, the best reference (below 0 is better)"
    across = "interactions with a new task (bands: 95 % of the difference, on the same tasks)"
    _finish_curves(axes, title, across, max(agent.step[-1] for agent in agents))
    labels = [
        EndLabel(agent.name, float(agent.gap[-1]), drawing.text_style(agent), float(agent.step[-1]))
        for agent in agents
    ]
    drawing.label_ends(axes, labels, "+")


def _regret_limit(agents: Sequence[AgentReport]) -> float | None:
    """Return the top of the axis; it cuts off the worst agent's regret if that would squash all others."""
    finals = sorted(float(agent.mean[-1]) for agent in agents)
    if len(finals) < 3 or finals[-1] <= _SQUASHING * finals[-2] or finals[-2] <= 0:
        return None
    return _HEADROOM * finals[-2]


def _draw_curves(axes: Axes, agents: Sequence[AgentReport], goal: float | None, title: str) -> None:
    for rank, agent in enumerate(agents):
        front = 3 + len(agents) - rank
        axes.fill_between(
            agent.step, agent.low, agent.high, color=agent.colour, alpha=0.2, lw=0, zorder=front
        )
        axes.plot(agent.step, agent.mean, **drawing.line_style(agent), zorder=front)
    end = max(agent.step[-1] for agent in agents)
    if goal is not None:  # it is known for the whole trial only, so mark its end and draw no line
        axes.plot(end, goal, "D", color=drawing.INK, ms=7, clip_on=False, zorder=20)
    _finish_curves(axes, title, "interactions with a new task (bands: 95 %)", end)
    if all(agent.mean.min() >= 0 for agent in agents):
        axes.set_ylim(bottom=0)


def _finish_curves(axes: Axes, title: str, across: str, end: float) -> None:
    axes.set_title(title, loc="left", size=12, color=drawing.INK, pad=10)
    axes.set_xlabel(across, size=11, color=drawing.INK)
    axes.set_xlim(0, end)
    label = drawing.LETTER * (len(f"{end:.0f}") + 2)  # two more for the gap to the next label
    most = min(10, int(axes.get_position().width / label))
    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", color=drawing.GRID, lw=0.8)


def _end_labels(agents: Sequence[AgentReport], goal: float | None) -> list[EndLabel]:
    labels = [
        EndLabel(agent.name, float(agent.mean[-1]), drawing.text_style(agent), float(agent.step[-1]))
        for agent in agents
    ]
    known = [] if goal is None else [EndLabel("Bayes-optimal", goal, {"color": drawing.INK})]
    return labels + known


def _draw_returns(axes: Axes, evaluation: EvaluationReport) -> None:
    """Draw the mean returns as dots, the best on top, and the bounds that no agent can pass."""
    ranked = sorted(evaluation.agents, key=lambda agent: agent.mean_return)
    decimals = drawing.decimals(agent.mean_return for agent in ranked)
    for row, agent in enumerate(ranked):
        needed = -math.floor(math.log10(agent.margin)) if agent.margin > 0 else 0  # or ± would round to 0
        _draw_return(axes, row, agent, max(min(6, needed), decimals))
    axes.set_yticks(range(len(ranked)), [drawing.short(agent.name) for agent in ranked])
    for label, agent in zip(axes.get_yticklabels(), ranked, strict=True):
        label.set(size=11.5, parse_math=False, **drawing.text_style(agent))
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.margins(x=0.1)
    axes.grid(axis="x", color=drawing.GRID, lw=0.8)
    axes.tick_params(axis="y", length=0)
    _keep_inside(axes)
    axes.set_title("Mean return (higher is better)", loc="left", size=12, color=drawing.INK, pad=10)
    _draw_bounds(axes, evaluation, decimals)


def _keep_inside(axes: Axes) -> None:
    """Make the axes so narrow that the texts on their right stay inside the figure."""
    figure_width = axes.figure.bbox.width
    over = max(text.get_window_extent().x1 for text in axes.texts) / figure_width - 0.997
    if over > 0:
        box = axes.get_position()
        axes.set_position((box.x0, box.y0, box.width - over / 1.04, box.height))


def _draw_return(axes: Axes, row: int, agent: AgentReport, decimals: int) -> None:
    value, margin = agent.mean_return, agent.margin
    size, width = (7, 2.6) if agent.is_subject else (5, 1.8)
    axes.errorbar(
        value, row, xerr=margin, fmt="o", color=agent.colour, ms=size, lw=width, capsize=5, zorder=4
    )
    text = f"{value:.{decimals}f} ± {margin:.{decimals}f}"
    beside = axes.get_yaxis_transform()
    axes.text(1.04, row, text, size=11, va="center_baseline", transform=beside, **drawing.text_style(agent))


def _draw_bounds(axes: Axes, evaluation: EvaluationReport, decimals: int) -> None:
    bounds = (("Bayes-optimal", evaluation.bayes, _BAYES), ("task known", evaluation.oracle, _ORACLE))
    known = [(name, value, style) for name, value, style in bounds if value is not None]
    for name, value, line in known:
        axes.axvline(
            value, color=drawing.INK, lw=1.5, ls=line, zorder=3, label=f"{name}  {value:.{decimals}f}"
        )
    if known:
        style: dict[str, Any] = {
            "fontsize": 10.5,
            "labelcolor": drawing.INK,
            "frameon": False,
            "columnspacing": 1.5,
        }
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.085), ncols=2, **style)
