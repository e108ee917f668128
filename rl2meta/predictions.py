"""Predictive means of an arm that pays 1 or 0, with an unknown probability of success."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]


@lru_cache(maxsize=8)
def predictive_means(num_pulls: int, low: float = 0.0, high: float = 1.0) -> _Floats:
    """Return p̂(s, N), the probability that an arm with p ~ U[low, high] pays after s successes in N pulls.

        p̂(s, N) = Z(s + 1, N + 1) / Z(s, N),   Z(s, N) = ∫ p^s (1 − p)^(N − s) dp from low to high

    On [0, 1] this is (s + 1) / (N + 2). For other bounds, Gauss-Legendre quadrature gives Z for N = n, and
    Z(s, N) = Z(s, N + 1) + Z(s + 1, N + 1) gives Z for smaller N; sums of positive numbers lose no digits.
    The computation uses logarithms, because Z may be as small as 2^−N.

    Args:
        num_pulls: n.
        low: lower bound of p.
        high: upper bound of p.

    Returns:
        float64 [n (n + 1) / 2], read-only: for each N < n, each s <= N, at N (N + 1) / 2 + s.
    """
    if (low, high) == (0, 1):
        rows = [(np.arange(pulls + 1) + 1) / (pulls + 2) for pulls in range(num_pulls)]
    else:
        log_z, rows = _log_integrals(num_pulls, low, high), []
        for _ in range(num_pulls):
            below = np.logaddexp(log_z[:-1], log_z[1:])
            rows.append(np.exp(log_z[1:] - below))
            log_z = below
        rows.reverse()
    means: _Floats = np.concatenate(rows)
    means.flags.writeable = False
    return means


def _log_integrals(num_pulls: int, low: float, high: float) -> _Floats:
    """Return ln Z(s, N) for s = 0 … N, where N is ``num_pulls``.

    With N / 2 + 1 nodes, quadrature is exact for polynomials of degree N. If N is several hundred or more,
    fewer nodes are enough: in float64 only about √N Chebyshev coefficients of p^s (1 − p)^(N − s) are not 0.
    """
    num_nodes = min(num_pulls // 2 + 1, 32 + 6 * math.isqrt(num_pulls))  # tunable
    place, weight = np.polynomial.legendre.leggauss(num_nodes)
    p, half = (low + high) / 2 + (high - low) / 2 * place, (high - low) / 2
    successes = np.arange(num_pulls + 1)[:, None]
    log_mass = successes * np.log(p) + (num_pulls - successes) * np.log1p(-p) + np.log(half * weight)
    log_integrals: _Floats = np.logaddexp.reduce(log_mass, axis=1)  # [N + 1, nodes] -> [N + 1]
    return log_integrals
