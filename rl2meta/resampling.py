"""The bootstrap over seeds and tasks, by weights: a resample is how often each seed and each task is drawn.

A resample of scores X [S, T] draws S seeds with replacement within each method (strata), and T tasks with
replacement, the same tasks for all methods. If seed s is drawn n_s times and task t is drawn m_t times, the
mean of the resample is Σ n_s m_t X_st / (S T). Over the draws its variance is, with dots for means,

    Σ (X_s. − X..)² / S²  +  Σ (X_.t − X..)² / T²  +  Σ (X_st − X_s. − X_.t + X..)² / (S T)²

The part of the seeds is on average (S − 1) / S of what it estimates.

Task t of resample b is ``Generator(PCG64([seed, 0])).integers(T, size=(B, T))[b, t]``, and the seeds of
method i = 1, 2 come from ``PCG64([seed, i])`` likewise. So a ``seed`` gives the same draws on every machine.

Source: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from rl2meta.statistics import Interval

Scores = NDArray[np.float64]
Counts = NDArray[np.int32]
_CELLS = 2**18  # numbers in a chunk of resamples: few enough for the cache, many enough for BLAS


class Resampling(TypedDict, total=False):
    """How to resample: the keyword arguments of all functions over seeds.

    Attributes:
        resamples: B, the number of resamples; 2000 if not given.
        confidence: the probability between the percentiles that end an interval, in (0, 1); 0.95.
        seed: of the draws, ≥ 0; 0.
        resample_tasks: whether tasks are drawn too (True); otherwise the interval is about these T tasks.
    """

    resamples: int
    confidence: float
    seed: int
    resample_tasks: bool


class _Plan(NamedTuple):
    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0
    resample_tasks: bool = True


class Estimate(NamedTuple):
    """A statistic of resamples.

    Attributes:
        of: from the counts of tasks [b, T] and of each method's seeds [b, S] to the statistic [b, ...].
        cells: how many numbers it holds for one resample.
    """

    of: Callable[..., Scores]
    cells: int


def interval(estimate: Estimate, tasks: int, seeds: Sequence[int], how: Resampling) -> Interval:
    """Return the interval of ``estimate`` between percentiles of its resamples.

    ``mean`` is the statistic of the scores themselves, ``standard_error`` the deviation of the resamples.

    Args:
        estimate: the statistic.
        tasks: T
        seeds: the number of seeds of each method.
        how: the settings.

    Raises:
        ValueError: if a setting is out of range, or nothing can be drawn anew.
    """
    plan = _checked(_Plan(**how), tasks, seeds)
    drawn = np.concatenate([estimate.of(*each) for each in _counts(tasks, seeds, plan, estimate.cells)])
    low, high = np.quantile(drawn, [(1 - plan.confidence) / 2, (1 + plan.confidence) / 2], axis=0)
    (itself,) = estimate.of(*(np.ones((1, count), dtype=np.int32) for count in (tasks, *seeds)))
    return Interval(itself, low, high, drawn.std(axis=0, ddof=1))


def weighted_mean(x: Scores) -> Estimate:
    """Return the estimate of the mean over seeds and tasks.

    Args:
        x: [S, T, ...]; each column of the last axes has its own mean.
    """
    columns = x.reshape(*x.shape[:2], -1)  # [S, T, E]

    def of(tasks: Counts, seeds: Counts) -> Scores:
        sums = np.einsum("bs,sbe->be", seeds, tasks.astype(np.float64) @ columns)
        means: Scores = sums.reshape(len(sums), *x.shape[2:]) / (x.shape[0] * x.shape[1])
        return means

    return Estimate(of, x.shape[1])


def of_sorted(x: Scores, statistic: Callable[[Scores, Counts], Scores]) -> Estimate:
    """Return the estimate of a statistic that needs the scores in order; they are sorted once.

    Args:
        x: [S, T]
        statistic: from the sorted scores [S T], and how many scores of each resample come up to each of them
            [b, S T], to [b, ...]; it may overwrite the latter.
    """
    order = np.argsort(x, axis=None)
    seed, task = np.divmod(order, x.shape[1])
    ordered = x.ravel()[order]

    def of(tasks: Counts, seeds: Counts) -> Scores:
        counts = np.take(tasks, task, axis=1)  # [b, S T]
        counts *= np.take(seeds, seed, axis=1)
        return statistic(ordered, np.cumsum(counts, axis=1, out=counts))

    return Estimate(of, x.size)


def interquartile_mean_of_sorted(ordered: Scores, upto: Counts) -> Scores:
    """Return the mean of the middle half of each resample, [b]; see ``of_sorted``."""
    cut = ordered.size // 4
    top = ordered.size - cut
    kept = np.clip(upto, cut, top, out=upto)  # of the middle half, so many come up to each score
    # The sum of each score times the increase of ``kept`` at it, by parts: no second array of this size.
    rest = np.einsum("bn,n->b", kept[:, :-1], np.diff(ordered))
    total: Scores = top * ordered[-1] - cut * ordered[0] - rest
    return total / (top - cut)


def median_of_sorted(ordered: Scores, upto: Counts) -> Scores:
    """Return the median of each resample, [b]; see ``of_sorted``."""
    middle = ((ordered.size - 1) // 2, ordered.size // 2)
    found: Scores = np.mean([ordered[(upto <= place).sum(axis=1)] for place in middle], axis=0)
    return found


def repeated(x: Scores, statistic: Callable[[Scores], Any]) -> Estimate:
    """Return the estimate of any function of scores [S, T]; every resample is built."""

    def of(tasks: Counts, seeds: Counts) -> Scores:
        counts = zip(seeds, tasks, strict=True)
        return np.array([statistic(x.repeat(s, axis=0).repeat(t, axis=1)) for s, t in counts])

    return Estimate(of, x.size)


def _checked(plan: _Plan, tasks: int, seeds: Sequence[int]) -> _Plan:
    if plan.resamples < 2 or not 0 < plan.confidence < 1:
        raise ValueError(
            "expected resamples >= 2 and confidence in (0, 1), "
            f"got resamples={plan.resamples}, confidence={plan.confidence}"
        )
    if max(*seeds, tasks if plan.resample_tasks else 1) < 2:
        raise ValueError(
            f"expected several seeds or tasks to draw from, got {'; '.join(map(str, seeds))} seeds and "
            f"{tasks} tasks with resample_tasks={plan.resample_tasks}"
        )
    return plan


def _counts(tasks: int, seeds: Sequence[int], plan: _Plan, cells: int) -> Iterator[list[Counts]]:
    """Yield how often each task [b, T] and each method's seeds [b, S] are drawn, b resamples at a time."""
    streams = [np.random.Generator(np.random.PCG64([plan.seed, i])) for i in range(1 + len(seeds))]
    rows = max(1, _CELLS // cells)
    for start in range(0, plan.resamples, rows):
        count = min(rows, plan.resamples - start)
        drawn = [_drawn(stream, count, n) for stream, n in zip(streams, (tasks, *seeds), strict=True)]
        yield drawn if plan.resample_tasks else [np.ones_like(drawn[0]), *drawn[1:]]


def _drawn(stream: np.random.Generator, rows: int, n: int) -> Counts:
    """Return how often each of n is drawn in n draws with replacement, in each row: [rows, n]."""
    places = stream.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(places.ravel(), minlength=rows * n).reshape(rows, n).astype(np.int32)
