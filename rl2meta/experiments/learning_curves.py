"""Read the learning curves of runs and groups: the score of the agent over the length of its training."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from rl2meta.errors import UserError
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.held_out import HELD_OUT
from rl2meta.learning_plot import LearningCurve, SeedCurve
from rl2meta.statistics import mean_interval

Over = Literal["steps", "seconds", "updates"]
Of = Literal["regret", "return"]
ACROSS: Mapping[Over, str] = {
    "steps": "environment steps of training",
    "seconds": "seconds of training",
    "updates": "updates of the learner",
}
MOST_POINTS = 25
"""A curve of the training return has at most so many points, each a mean over consecutive updates."""
_MEAN_RETURN = "mean_return"
_log = logging.getLogger("rl2meta")


class Trained(NamedTuple):
    """What is read of one training.

    Attributes:
        config: its experiment.
        rows: its metrics, one row for each update.
    """

    config: RunConfig
    rows: Sequence[Mapping[str, Any]]


class Source(NamedTuple):
    """A run or a group of runs.

    Attributes:
        name: in the figure.
        runs: one, or one for each seed.
    """

    name: str
    runs: Sequence[Trained]


def chosen_metric(sources: Sequence[Source], of: Of | None) -> str:
    """Return the metric that the figure shows, the same for all runs.

    This is ``held_out_regret`` or ``held_out_return`` where every run has them in a row, by default the
    regret. Otherwise it is ``mean_return``, the return on the training tasks.

    Raises:
        UserError: if ``of`` is something else, or the regret of a run is wanted and not known.
    """
    if of is not None and of not in get_args(Of):
        raise UserError(f"--of: expected {' or '.join(get_args(Of))}, got {of!r}")
    held_out = {name: [_lacking(sources, HELD_OUT + name)] for name in get_args(Of)}
    regret, returned = (held_out[name][0] for name in ("regret", "return"))
    if of == "regret" and regret is not None:
        raise UserError(
            f"--of regret: expected runs with held-out regrets, got {regret} without; train with "
            "training.evaluate_every=N, on a family that knows its optimum, or use --of return"
        )
    if of != "return" and regret is None:
        return HELD_OUT + "regret"
    return HELD_OUT + "return" if returned is None else _MEAN_RETURN


def is_held_out(metric: str) -> bool:
    """Return whether a metric is one of held-out tasks."""
    return metric.startswith(HELD_OUT)


def _lacking(sources: Sequence[Source], metric: str) -> str | None:
    """Return the first source none of whose rows has the metric; None if all sources have it."""
    for source in sources:
        if not any(metric in row for run in source.runs for row in run.rows):
            return source.name
    return None


def curve_of(source: Source, metric: str, over: Over) -> LearningCurve:
    """Return the curve of a run or a group.

    The mean and Student's 95 % interval are over seeds. Between its points a seed's curve is a straight line,
    so the mean has a corner wherever a seed has a point. It covers the range that all seeds have, because
    seeds may have stopped at different updates.

    Raises:
        UserError: if no run has the metric, or their ranges have nothing in common.
    """
    seeds = [seed for run in source.runs if (seed := _seed_curve(run, metric, over)) is not None]
    if not seeds:
        raise UserError(f"{source.name}: expected a training with a row of metrics, got none yet")
    if len(seeds) < len(source.runs):
        _log.warning(
            "%s: %d of %d seeds have no %s yet",
            source.name,
            _missing(source, seeds),
            len(source.runs),
            metric,
        )
    if len(seeds) == 1:
        (only,) = seeds
        return LearningCurve(source.name, seeds, only.x, only.y, None, None)
    x = _common(source.name, [seed.x for seed in seeds])
    band = mean_interval(np.stack([np.interp(x, seed.x, seed.y) for seed in seeds]))  # [seeds, points]
    mean, low, high = (np.asarray(each) for each in (band.mean, band.low, band.high))
    return LearningCurve(f"{source.name} ({len(seeds)} seeds)", seeds, x, mean, low, high)


def _missing(source: Source, seeds: Sequence[SeedCurve]) -> int:
    return len(source.runs) - len(seeds)


def _common(name: str, points: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return all points of all seeds, from where the last one begins to where the first one ends."""
    first, last = max(each[0] for each in points), min(each[-1] for each in points)
    if first > last:
        raise UserError(
            f"{name}: expected seeds that were judged over a common part of the training, got one that ends "
            f"at {last:,.0f} and one that begins at {first:,.0f}; train the shorter ones on"
        )
    x = np.unique(np.concatenate(points))
    return np.asarray(x[(first <= x) & (x <= last)])


def _seed_curve(run: Trained, metric: str, over: Over) -> SeedCurve | None:
    """Return the points of a training, or None if it has none."""
    x, has = _POSITIONS[over](run.rows), np.array([metric in row for row in run.rows], dtype=bool)
    if not has.any():
        return None
    y = np.array([row[metric] for row in run.rows if metric in row], dtype=np.float64)
    x = x[has]
    if metric == _MEAN_RETURN:
        x, y = _blocks(x), _blocks(y)
    return SeedCurve(run.config.settings.seed, x, y)


def updates_per_point(source: Source) -> int:
    """Return over how many updates a point of the training return is a mean, at most."""
    return max(-(-len(run.rows) // MOST_POINTS) for run in source.runs)


def _blocks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of at most ``MOST_POINTS`` blocks of consecutive values, of about the same length."""
    return np.array([block.mean() for block in np.array_split(values, min(MOST_POINTS, len(values)))])


def _seconds(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the seconds from row to row; updates without a row, as in the zoo, count as the next one."""
    updates = [0, *(row["update"] for row in rows)]
    return [row["seconds"] * (row["update"] - before) for before, row in zip(updates, rows, strict=False)]


_POSITIONS: Mapping[Over, Callable[[Sequence[Mapping[str, Any]]], NDArray[np.float64]]] = {
    "steps": lambda rows: np.array([row["env_steps"] for row in rows], dtype=np.float64),
    "seconds": lambda rows: np.cumsum(_seconds(rows), dtype=np.float64),
    "updates": lambda rows: np.array([row["update"] for row in rows], dtype=np.float64),
}
