"""Means over tasks and their confidence intervals."""

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
        standard_error: s / √n.
    """

    mean: Values
    low: Values
    high: Values
    standard_error: Values


def mean_interval(samples: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean over the first axis and Student's confidence interval around it.

    x̄ ± t · s / √n, with s² = Σ (xᵢ − x̄)² / (n − 1) and t = ``t_quantile(n, confidence)``

    Args:
        samples: [n, ...], independent along the first axis; each column gets its own interval.
        confidence: the probability that an interval covers its mean, in (0, 1).

    Raises:
        ValueError: if n < 2 or ``confidence`` is not in (0, 1).

    Source: Student, The probable error of a mean, Biometrika 6 (1908).
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim == 0 or len(values) < 2:
        raise ValueError(f"expected at least 2 samples, got an array of shape {values.shape}")
    mean: Values = values.mean(axis=0)
    standard_error: Values = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    margin = t_quantile(len(values), confidence) * standard_error
    return Interval(mean, mean - margin, mean + margin, standard_error)


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the interval of the mean of aᵢ − bᵢ, for two agents measured on the same tasks.

    What a task contributes to both agents cancels, so this interval is narrower than two separate intervals
    suggest.

    Args:
        a: [n, ...]
        b: [n, ...]; row i is on the same task as row i of ``a``.
        confidence: as in ``mean_interval``.

    Raises:
        ValueError: if the shapes differ, or ``mean_interval`` raises it.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"expected pairs, got arrays of shapes {first.shape} and {second.shape}")
    return mean_interval(first - second, confidence)


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
