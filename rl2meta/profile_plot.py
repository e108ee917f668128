"""Draws performance profiles: which share of a method's scores lies above each threshold."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from numpy.typing import ArrayLike, NDArray

from rl2meta import drawing
from rl2meta.aggregates import median, profile_over_seeds
from rl2meta.reports import AgentReport, EvaluationReport
from rl2meta.resampling import Resampling
from rl2meta.statistics import Interval

_HALF: dict[str, Any] = {"color": drawing.FAINT, "lw": 1, "ls": (0, (1, 2)), "zorder": 1}
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 11.5, "handlelength": 1.6, "borderaxespad": 0}
_BESIDE = 1.02  # where the legend begins, as a share of the axes


class Profile(NamedTuple):
    """A method's profile.

    Attributes:
        name: the method.
        seeds: how many of its training seeds the scores are of; 0 if it is not trained.
        is_subject: whether the figure is about this method.
        median: of all its scores.
        fraction: P(score > τ) at each threshold, [K] in each field.
        colour: of its curve.
    """

    name: str
    seeds: int
    is_subject: bool
    median: float
    fraction: Interval
    colour: str


class ProfileFigure(NamedTuple):
    """What a figure of profiles shows.

    Attributes:
        title: how many tasks of which kind, such as "10,000 held-out tasks".
        subtitle: the law.
        score: what a score is, such as "return".
        higher_is_better: whether a good method's curve lies above the others.
        thresholds: τ, [K], in ascending order.
        profiles: the methods; those that the figure is about come first and keep their colours.
    """

    title: str
    subtitle: str
    score: str
    higher_is_better: bool
    thresholds: NDArray[np.float64]
    profiles: list[Profile]


def common_thresholds(scores: Iterable[ArrayLike], count: int = 201) -> NDArray[np.float64]:
    """Return thresholds at equal distances from the lowest to the highest of all scores.

    Args:
        scores: those of each method, of any shape.
        count: K
    """
    ends = [(np.min(each), np.max(each)) for each in scores]
    return np.linspace(min(low for low, _ in ends), max(high for _, high in ends), count)


def profile_of(
    name: str,
    x: ArrayLike,
    thresholds: ArrayLike,
    is_subject: bool = True,
    colour: str = drawing.INK,
    **how: Unpack[Resampling],
) -> Profile:
    """Return the profile of a method with its interval at each threshold.

    Args:
        name: the method.
        x: [S, T]; a method without training has one row, and its band is over tasks alone.
        thresholds: [K]
        is_subject: whether the method is trained, and the figure about it.
        colour: of its curve.
        how: as in ``over_seeds``; figures call the intervals 95 %.
    """
    fraction = profile_over_seeds(x, thresholds, **how)
    return Profile(name, len(np.asarray(x)) if is_subject else 0, is_subject, median(x), fraction, colour)


def plot_profile(shown: ProfileFigure, folder: Path) -> Path:
    """Draw P(score > τ) over τ for each method to profile.png in ``folder``, and return its path.

    A curve crosses the dotted line at ½ where the method's median score is. A method whose curve lies above
    that of another everywhere has the higher score at every quantile.

    Raises:
        UserError: if the file cannot be written.

    Source: Agarwal et al., Deep reinforcement learning at the edge of the statistical precipice, 2021.
    """
    agents = [_report(shown, place) for place in range(len(shown.profiles))]
    evaluation = EvaluationReport(shown.title, shown.subtitle, None, None, None, None, agents)
    figure = drawing.new_figure(evaluation, "Performance profile")
    axes = drawing.add_axes(figure, 0.05, 0.85)
    for agent in agents:
        _draw_profile(axes, agent, len(agents))
    _finish(axes, shown)
    _write_legend(axes, shown, agents)
    return drawing.save(figure, folder / "profile.png")


def _report(shown: ProfileFigure, place: int) -> AgentReport:
    profile = shown.profiles[place]
    _, low, high, _ = profile.fraction
    curve = (shown.thresholds, np.asarray(profile.fraction.mean), np.asarray(low), np.asarray(high))
    unknown = [np.full_like(shown.thresholds, np.nan)] * 3  # the differences to a reference
    facts = (profile.name, place, profile.colour, profile.is_subject, 1, profile.median, 0.0)
    return AgentReport(*facts, *curve, *unknown)


def _draw_profile(axes: Axes, agent: AgentReport, count: int) -> None:
    front = 3 + count - agent.place
    axes.fill_between(agent.step, agent.low, agent.high, color=agent.colour, alpha=0.2, lw=0, zorder=2)
    axes.plot(agent.step, agent.mean, **drawing.line_style(agent), zorder=front)


def _finish(axes: Axes, shown: ProfileFigure) -> None:
    better = "higher" if shown.higher_is_better else "lower"
    title = f"Share of {shown.score}s above τ ({better} is better)"
    axes.set_title(title, loc="left", size=12, color=drawing.INK, pad=10)
    bands = "bands: 95 % over seeds and tasks"
    alone = "; with one seed or none, over tasks" if any(p.seeds < 2 for p in shown.profiles) else ""
    axes.set_xlabel(
        f"τ, the {shown.score} of a trial ({bands}{alone})", loc="left", size=11, color=drawing.INK
    )
    axes.set_xlim(shown.thresholds[0], shown.thresholds[-1])
    axes.set_ylim(0, 1.005)
    axes.axhline(0.5, **_HALF)
    axes.grid(axis="y", color=drawing.GRID, lw=0.8)


def _write_legend(axes: Axes, shown: ProfileFigure, agents: Sequence[AgentReport]) -> None:
    """Name the methods beside the axes, the best median first: all curves end at 0, where no label helps."""
    ranked = sorted(agents, key=lambda agent: agent.mean_return, reverse=shown.higher_is_better)
    digits = drawing.decimals(agent.mean_return for agent in agents)
    lines = [axes.plot([], [], **drawing.line_style(agent))[0] for agent in ranked]
    names = [_label(shown.profiles[agent.place], digits) for agent in ranked]
    legend = axes.legend(
        lines, names, loc="upper left", bbox_to_anchor=(_BESIDE, 1.0), title="median", **_LEGEND
    )
    legend.get_title().set(size=11, color=drawing.FAINT)
    legend.set_alignment("left")
    for text, agent in zip(legend.get_texts(), ranked, strict=True):
        text.set(parse_math=False, **drawing.text_style(agent))
    _make_room(axes, legend)


def _make_room(axes: Axes, legend: Legend) -> None:
    """Make the axes so narrow that the legend on their right ends inside the figure."""
    over = legend.get_window_extent().x1 / axes.figure.bbox.width - 0.99
    box = axes.get_position()
    axes.set_position((box.x0, box.y0, box.width - over / _BESIDE, box.height))


def _label(profile: Profile, digits: int) -> str:
    seeds = {0: "", 1: " (1 seed)"}.get(profile.seeds, f" ({profile.seeds} seeds)")
    return f"{drawing.short(profile.name)}  {profile.median:.{digits}f}{seeds}"
