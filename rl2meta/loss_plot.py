"""Draws the loss of each episode on a logarithmic scale, for tasks whose optimum is 0."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from rl2meta import drawing
from rl2meta.drawing import EndLabel
from rl2meta.errors import UserError
from rl2meta.reports import AgentReport, EvaluationReport, is_loss, read_adaptation

_ORDERS = 6  # of magnitude below the largest loss: what lies deeper is cut off
_GROWN = 2.0  # times the loss before the first adaptation: what lies higher is cut off


def plot_loss(folder: Path) -> Path:
    """Draw minus the return of an episode over the adaptations before it to loss.png, and return its path.

    If agents play blocks of episodes of different lengths, the horizontal axis counts episodes instead.

    Args:
        folder: an evaluation folder with evaluation.json and adaptation.csv.

    Raises:
        UserError: if a file is missing or not as expected, or the optimum of the tasks is not 0.
    """
    if not is_loss(folder):
        raise UserError(
            f"expected an evaluation on tasks whose optimum is 0, so that a return is minus a loss, got "
            f"{folder}; draw its adaptation"
        )
    evaluation = read_adaptation(folder)
    figure = drawing.new_figure(evaluation, "Loss")
    axes = drawing.add_axes(figure, 0.07, 0.8 - 1.1 * drawing.widest_name(evaluation))
    blocks = {agent.episodes_per_block for agent in evaluation.agents}
    unit = blocks.pop() if len(blocks) == 1 else 1
    for agent in evaluation.agents:
        _draw(axes, agent, unit, len(evaluation.agents))
    _finish(axes, evaluation, "adaptations" if unit > 1 else "episodes", unit)
    return drawing.save(figure, folder / "loss.png")


def _draw(axes: Axes, agent: AgentReport, unit: int, agents: int) -> None:
    x, front = agent.step / unit, 3 + agents - agent.place
    least = np.finfo(float).tiny  # a logarithmic axis has no 0; the limits of the axis cut this off
    axes.fill_between(
        x, (-agent.high).clip(least), (-agent.low).clip(least), color=agent.colour, alpha=0.2, lw=0, zorder=2
    )
    axes.plot(x, (-agent.mean).clip(least), **drawing.line_style(agent), zorder=front)


def _finish(axes: Axes, evaluation: EvaluationReport, across: str, unit: int) -> None:
    curves = [-agent.mean for agent in evaluation.agents]
    # One task that diverges lifts a mean by powers of ten: its curve leaves the axis, and an arrow says so.
    top = min(max(float(curve.max()) for curve in curves), _GROWN * max(float(curve[0]) for curve in curves))
    bottom = max(min(float(curve.min()) for curve in curves), top / 10**_ORDERS)
    end = max(1.0, *(float(agent.step[-1]) / unit for agent in evaluation.agents))
    axes.set_yscale("log")
    axes.set(xlim=(0, end), ylim=(bottom / 1.3, top * 1.3))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.set_title("Loss after so many " + across + " (lower is better)", loc="left", size=12, pad=10)
    axes.set_xlabel(f"{across} before (bands: 95 %)", size=11, color=drawing.INK)
    axes.grid(axis="y", color=drawing.GRID, lw=0.8)
    labels = [
        EndLabel(agent.name, float(-agent.mean[-1]), drawing.text_style(agent), float(agent.step[-1]) / unit)
        for agent in evaluation.agents
    ]
    drawing.label_ends(axes, labels)
