"""Scores of training seeds on held-out tasks in one number, and intervals over tasks and over seeds.

The scores of a method are a matrix X [S, T]: S training seeds, T held-out tasks. All methods play the same
tasks. Two questions have two intervals. ``over_tasks``: what do these S agents earn on the law?
``over_seeds``: what does the method earn, if somebody trains it with other seeds? The second draws seeds
and tasks anew (``resampling.py`` says how). It is too narrow with few seeds (docs/results.md says by how
much), and one seed says nothing about a method.

Source: Agarwal et al., Deep reinforcement learning at the edge of the statistical precipice, NeurIPS 2021.
"""

from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike

from rl2meta.resampling import (
    Counts,
    Estimate,
    Resampling,
    Scores,
    interquartile_mean_of_sorted,
    interval,
    median_of_sorted,
    of_sorted,
    repeated,
    weighted_mean,
)
from rl2meta.statistics import Interval, mean_interval

Statistic = Callable[[Scores], Any]


def mean(x: ArrayLike) -> float:
    """Return the mean of all scores.

    Args:
        x: [S, T]
    """
    return float(_scores(x).mean())


def median(x: ArrayLike) -> float:
    """Return the median of all scores.

    Args:
        x: [S, T]
    """
    return float(np.median(_scores(x)))


def interquartile_mean(x: ArrayLike) -> float:
    """Return the mean of the middle half of all scores: without ⌊S T / 4⌋ at each end.

    Args:
        x: [S, T]

    Source: Agarwal et al. 2021, section 4.3.
    """
    scores = np.sort(_scores(x), axis=None)
    cut = scores.size // 4
    return float(scores[cut : scores.size - cut].mean())


def shortfall(x: ArrayLike, ceiling: ArrayLike) -> Scores:
    """Return max(0, γ − X_st), so that ``over_seeds(shortfall(x, γ))`` is the interval of the optimality gap.

    Args:
        x: [S, T]
        ceiling: γ, one number or [T], such as each task's optimal return.
    """
    gap: Scores = np.maximum(0.0, np.asarray(ceiling, dtype=np.float64) - _scores(x))
    return gap


def optimality_gap(x: ArrayLike, ceiling: ArrayLike) -> float:
    """Return the mean of max(0, γ − X_st): what the scores lack to the ceiling γ (lower is better).

    Scores above γ do not make up for scores below it.

    Args:
        x: [S, T]
        ceiling: γ, one number or [T].

    Source: Agarwal et al. 2021, section 4.3.
    """
    return float(shortfall(x, ceiling).mean())


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """Return how probable it is that a seed of x beats a seed of y on a task: the mean of P_t over tasks.

    P_t = Σ ([X_st > Y_rt] + ½ [X_st = Y_rt]) / (S R) over pairs of seeds s, r: Mann and Whitney's U by S R

    Args:
        x: [S, T]
        y: [R, T], on the same tasks.

    Source: Agarwal et al. 2021, section 4.3.
    """
    return float(_wins(*_pair(x, y)).mean())


def performance_profile(x: ArrayLike, thresholds: ArrayLike) -> Scores:
    """Return the fraction of all scores that are greater than each threshold τ.

    Args:
        x: [S, T]
        thresholds: [K]

    Source: Agarwal et al. 2021, section 4.2.
    """
    scores = np.sort(_scores(x), axis=None)
    fraction: Scores = 1 - np.searchsorted(scores, np.asarray(thresholds), side="right") / scores.size
    return fraction


def over_tasks(x: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return Student's interval over tasks of the mean over seeds: what these S agents earn on the law.

    Args:
        x: [S, T, ...]
        confidence: as in ``mean_interval``.

    Raises:
        ValueError: if T < 2 or the scores are no such array.
    """
    return mean_interval(_scores(x, more=True).mean(axis=0), confidence)


def over_seeds(x: ArrayLike, statistic: Statistic = mean, **how: Unpack[Resampling]) -> Interval:
    """Return the interval of ``statistic`` over training seeds and tasks: what the method earns on the law.

    With one seed it is an interval over tasks alone, and says nothing about the method.

    Args:
        x: [S, T]
        statistic: ``mean``, ``median``, ``interquartile_mean``, or (slowly) any function of [S, T] to a
            number that the order of seeds and of tasks does not change.
        how: ``resamples``, ``confidence``, ``seed``, ``resample_tasks``; see ``Resampling``.

    Raises:
        ValueError: if the scores are no such array, a setting is out of range, or nothing can be drawn anew.
    """
    scores = _scores(x)
    return interval(_estimate(statistic, scores), scores.shape[1], [len(scores)], how)


def curve_over_seeds(values: ArrayLike, **how: Unpack[Resampling]) -> Interval:
    """Return the interval of each point of a curve of means; all points share their resamples.

    Args:
        values: [S, T, E], such as the return in each of E episodes.
        how: as in ``over_seeds``.

    Raises:
        ValueError: as ``over_seeds``.
    """
    scores = _scores(values, more=True)
    return interval(_estimate(mean, scores), scores.shape[1], [len(scores)], how)


def profile_over_seeds(x: ArrayLike, thresholds: ArrayLike, **how: Unpack[Resampling]) -> Interval:
    """Return the interval of ``performance_profile`` at each threshold; all thresholds share their resamples.

    Args:
        x: [S, T]
        thresholds: [K]
        how: as in ``over_seeds``.

    Raises:
        ValueError: as ``over_seeds``.
    """
    scores = _scores(x)
    below = np.searchsorted(np.sort(scores, axis=None), np.asarray(thresholds), side="right")  # [K]

    def profile(_: Scores, upto: Counts) -> Scores:
        fraction: Scores = 1 - np.where(below > 0, upto[:, below - 1], 0) / scores.size
        return fraction

    return interval(of_sorted(scores, profile), scores.shape[1], [len(scores)], how)


def difference_over_seeds(
    x: ArrayLike, y: ArrayLike, statistic: Statistic = mean, **how: Unpack[Resampling]
) -> Interval:
    """Return the interval of statistic(x) − statistic(y), paired in tasks: what a task gives to both cancels.

    The seeds of the two methods are drawn independently of each other.

    Args:
        x: [S, T]
        y: [R, T], on the same tasks.
        statistic: as in ``over_seeds``.
        how: as in ``over_seeds``.

    Raises:
        ValueError: as ``over_seeds``, and if the numbers of tasks differ.
    """
    first, second = _pair(x, y)
    a, b = _estimate(statistic, first), _estimate(statistic, second)
    difference = Estimate(lambda tasks, s, r: a.of(tasks, s) - b.of(tasks, r), a.cells + b.cells)
    return interval(difference, first.shape[1], [len(first), len(second)], how)


def improvement_over_seeds(x: ArrayLike, y: ArrayLike, **how: Unpack[Resampling]) -> Interval:
    """Return the interval of ``probability_of_improvement``, paired in tasks; ½ says that neither is better.

    Args:
        x: [S, T]
        y: [R, T], on the same tasks.
        how: as in ``over_seeds``.

    Raises:
        ValueError: as ``difference_over_seeds``.
    """
    first, second = _pair(x, y)
    wins = _wins(first, second)  # [S, R, T]

    def share(tasks: Counts, s: Counts, r: Counts) -> Scores:
        each = np.tensordot(tasks.astype(np.float64), wins, axes=(1, 2))  # [b, S, R]
        counted: Scores = np.einsum("bs,br,bsr->b", s, r, each) / wins.size
        return counted

    estimate = Estimate(share, first.shape[1])
    return interval(estimate, first.shape[1], [len(first), len(second)], how)


def _scores(x: ArrayLike, more: bool = False) -> Scores:
    scores = np.asarray(x, dtype=np.float64)
    if scores.size == 0 or scores.ndim < 2 or (scores.ndim > 2 and not more):
        raise ValueError(f"expected scores [seeds, tasks], got an array of shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("expected finite scores, got NaN or infinity")
    return scores


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Scores, Scores]:
    first, second = _scores(x), _scores(y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"expected scores on the same tasks, got {first.shape[1]} and {second.shape[1]} tasks; "
            "evaluate both methods with one seed and number of tasks"
        )
    return first, second


def _wins(x: Scores, y: Scores) -> Scores:
    """Return 1 where a seed of x beats a seed of y on a task, ½ where they are equal, and 0: [S, R, T]."""
    wins: Scores = (np.sign(x[:, None] - y) + 1) / 2
    return wins


def _estimate(statistic: Statistic, x: Scores) -> Estimate:
    """Return the estimate of a statistic: a fast one if it has one."""
    if statistic is mean:
        return weighted_mean(x)
    if statistic is interquartile_mean:
        return of_sorted(x, interquartile_mean_of_sorted)
    if statistic is median:
        return of_sorted(x, median_of_sorted)
    return repeated(x, statistic)
