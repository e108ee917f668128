"""Means over tasks and their confidence intervals."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = np.float64 | NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with its confidence interval; each field has the shape of one sample.

    Attributes:
        mean: x̄.
        low: the lower end of the interval.
        high: the upper end.
        standard_error: of the mean.
    """

    mean: Values
    low: Values
    high: Values
    standard_error: Values


def mean_interval(
    samples: ArrayLike, confidence: float = 0.95, clusters: ArrayLike | None = None
) -> Interval:
    """Return the mean over the first axis and Student's confidence interval around it.

    x̄ ± t · s / √n, with s² = Σ (xᵢ − x̄)² / (n − 1) and t = ``t_quantile(n, confidence)``

    Samples of one cluster need not be independent of each other, only of those of other clusters. With G
    clusters, and u_g the sum of xᵢ − x̄ over cluster g, the standard error and the quantile are

    √(G / (G − 1) · Σ u_g²) / n  and  t = ``t_quantile(G, confidence)``

    If every sample is a cluster of its own, both forms are the same.

    Args:
        samples: [n, ...], independent along the first axis; each column gets its own interval.
        confidence: the probability that an interval covers its mean, in (0, 1).
        clusters: [n], equal for samples of the same cluster; None if all samples are independent.

    Raises:
        ValueError: if n < 2, there is only one cluster, or ``confidence`` is not in (0, 1).

    Source: Student, The probable error of a mean, Biometrika 6 (1908). Liang and Zeger, Longitudinal data
    analysis using generalized linear models, Biometrika 73 (1986); the factor G / (G − 1) and G − 1 degrees
    of freedom: Cameron and Miller, A practitioner's guide to cluster-robust inference, Journal of Human
    Resources 50 (2015).
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim == 0 or len(values) < 2:
        raise ValueError(f"expected at least 2 samples, got an array of shape {values.shape}")
    mean: Values = values.mean(axis=0)
    independent = len(values)
    if clusters is None:
        standard_error: Values = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    else:
        sums = _cluster_sums(values - mean, np.asarray(clusters))  # [num_clusters, ...]
        independent = len(sums)
        squares = np.square(sums).sum(axis=0)
        standard_error = np.sqrt(independent / (independent - 1) * squares) / len(values)
    margin = t_quantile(independent, confidence) * standard_error
    return Interval(mean, mean - margin, mean + margin, standard_error)


def paired_difference(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, clusters: ArrayLike | None = None
) -> Interval:
    """Return the interval of the mean of aᵢ − bᵢ, for two agents measured on the same tasks.

    What a task contributes to both agents cancels, so this interval is narrower than two separate intervals
    suggest.

    Args:
        a: [n, ...]
        b: [n, ...]; row i is on the same task as row i of ``a``.
        confidence: as in ``mean_interval``.
        clusters: as in ``mean_interval``.

    Raises:
        ValueError: if the shapes differ, or ``mean_interval`` raises it.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"expected pairs, got arrays of shapes {first.shape} and {second.shape}")
    return mean_interval(first - second, confidence, clusters)


def median_interval(samples: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the median of samples, and an interval that covers the true one whatever their distribution is.

        [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎] with the largest k for which 2 P(K < k) ≤ 1 − confidence,  K ~ Binomial(n, 1/2)

    where x₍ₖ₎ is the k-th smallest sample: K counts the samples below the median, if they are independent. So
    a few samples that are far away, as in timings, do not widen it.

    Args:
        samples: [n].
        confidence: the least probability that the interval covers the median, in (0, 1).

    Returns:
        The median, and the lower and the upper end of the interval.

    Raises:
        ValueError: if n is less than ``fewest_for_median(confidence)``.

    Source: David and Nagaraja, Order Statistics, 3rd edition (2003), section 7.1.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    if n < (least := fewest_for_median(confidence)):
        raise ValueError(f"expected at least {least} samples for {confidence}, got {n}")
    below = np.cumsum([math.comb(n, k) for k in range(n)]) / 2.0**n  # P(K ≤ k)
    k = int((2 * below <= 1 - confidence).sum())
    return float(np.median(ordered)), float(ordered[k - 1]), float(ordered[n - k])


def fewest_for_median(confidence: float) -> int:
    """Return the fewest samples with which the smallest and the largest enclose the median so surely.

    That is the smallest n with 2 · 2⁻ⁿ ≤ 1 − confidence.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence in (0, 1), got {confidence}")
    return max(1, math.ceil(1 - math.log2(1 - confidence) - 1e-12))


def _cluster_sums(values: NDArray[np.float64], clusters: NDArray[Any]) -> NDArray[np.float64]:
    """Return the sum of ``values``, [n, ...], over each cluster, [num_clusters, ...].

    Raises:
        ValueError: if there is not one cluster for each value, or only one cluster.
    """
    if clusters.shape != values.shape[:1]:
        raise ValueError(f"expected {len(values)} clusters, one per sample, got shape {clusters.shape}")
    order = np.argsort(clusters, kind="stable")
    _, starts = np.unique(clusters[order], return_index=True)
    if len(starts) < 2:
        raise ValueError("expected at least 2 clusters, got 1")
    return np.asarray(np.add.reduceat(values[order], starts, axis=0))


def t_quantile(n: int, confidence: float = 0.95) -> float:
    """Return the number of standard errors from the mean of ``n`` samples to the end of its interval.

    P(|T| ≤ t) = ``confidence``, where T has Student's distribution with n − 1 degrees of freedom

    Raises:
        ValueError: if n < 2 or ``confidence`` is not in (0, 1).
    """
    if n < 2 or not 0 < confidence < 1:
        raise ValueError(f"expected n >= 2 and confidence in (0, 1), got n={n}, confidence={confidence}")
    from scipy.special import stdtrit  # slow to import, and training needs no interval

    quantile: Any = stdtrit(n - 1, (1 + confidence) / 2)
    return float(quantile)
