"""Finite-horizon Gittins indices of Bernoulli arms."""

from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl2meta.predictions import predictive_means

_Floats = NDArray[np.floating[Any]]
_Excess = list[_Floats]  # W of the arms with d pulls, at index d: [d + 1 successes, grid]
_Count = TypeVar("_Count", int, Tensor)

_FINE, _COARSE = 1001, 301  # numbers of grid points; _grid chooses one


def gittins_index(
    num_pulls: int,
    successes: Tensor,
    failures: Tensor,
    remaining: Tensor,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Look up the indices of arms with a U[low, high] prior in the table of ``num_pulls`` pulls.

    Args:
        num_pulls: n, the pulls of the whole trial.
        successes: s of each arm, int64.
        failures: f of each arm, int64, with s + f <= n − m.
        remaining: m, pulls left in the trial, 1 <= m <= n, int64.
        low: lower bound of the arm's mean.
        high: upper bound of the arm's mean.

    Returns:
        The indices, float, in the broadcast shape of the arguments and on their device.
    """
    pulls, used = successes + failures, num_pulls - remaining
    position = _tetrahedral(used) + pulls * (pulls + 1) // 2 + successes
    return _on_device(num_pulls, low, high, position.device)[position]


def gittins_indices(num_pulls: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return the finite-horizon Gittins index of every state that a trial of n pulls can reach.

    The index of an arm with s successes, f failures and m pulls left is the payoff λ of a known arm at which
    two options have the same value: to pull the unknown arm, with the option to retire to the known arm at
    any later time, or to retire now. It is the root λ of

        Q_m(s, f, λ) = p − λ + p W_{m−1}(s + 1, f, λ) + (1 − p) W_{m−1}(s, f + 1, λ),   W_m = max(0, Q_m),

    with W_0 = 0 and p the posterior mean, which is (s + 1) / (s + f + 2) on [0, 1]; mλ + W_m is the value of
    the two arms together. Q_m is computed exactly on a grid of λ, with 1001 points for n <= 200 and 301 for
    larger n; linear interpolation gives its root.

    Args:
        num_pulls: n.
        low: lower bound of the arm's mean.
        high: upper bound of the arm's mean.

    Returns:
        float [n (n + 1) (n + 2) / 6], on the CPU: for each u = n − m = 0 … n − 1, each s + f <= u, each s.
        n = 100 takes half a second; n = 500 takes 15 seconds and 0.5 GB, in float32. Bounds other than 0 and
        1 take twice as much, in float64, because a narrow interval needs more digits.

    Raises:
        ValueError: if ``num_pulls`` is below 1.

    Source: Niño-Mora 2011, "Computing a classic index for finite-horizon bandits", INFORMS J. Comput. 23(2).
    """
    if num_pulls < 1:
        raise ValueError(f"expected num_pulls >= 1, got {num_pulls}")
    return _solved(num_pulls, float(low), float(high))


@lru_cache(maxsize=4)
def _solved(num_pulls: int, low: float, high: float) -> Tensor:
    grid = _grid(num_pulls, low, high)
    means = predictive_means(num_pulls, low, high).astype(grid.dtype)
    return torch.from_numpy(_solve(num_pulls, grid, means))


@lru_cache(maxsize=4)
def _on_device(num_pulls: int, low: float, high: float, device: torch.device) -> Tensor:
    return gittins_indices(num_pulls, low, high).to(device)


def _solve(num_pulls: int, grid: _Floats, means: _Floats) -> _Floats:
    """Solve for m = 1, …, n; one buffer is enough, because row d needs only row d + 1 of m − 1."""
    excess = [np.zeros((d + 1, len(grid)), dtype=grid.dtype) for d in range(num_pulls + 1)]
    table = np.empty(_tetrahedral(num_pulls), dtype=grid.dtype)
    for used in reversed(range(num_pulls)):
        start = _tetrahedral(used)
        for d in range(used + 1):
            first = d * (d + 1) // 2
            mean = means[first : first + d + 1, None]
            table[start + first : start + first + d + 1] = _step(excess, d, grid, mean)
    return table


def _step(excess: _Excess, d: int, grid: _Floats, mean: _Floats) -> _Floats:
    """Replace W_{m−1} by W_m for arms with d pulls and ``mean`` [d + 1, 1]; return their indices, [d + 1]."""
    failure, success, q = excess[d + 1][:-1], excess[d + 1][1:], excess[d]
    np.subtract(success, failure, out=q)
    q += 1
    q *= mean
    q += failure
    q -= grid  # now Q_m [d + 1, grid], falling in λ from above 0 to below
    index = _root(q, grid)
    np.maximum(q, 0, out=q)
    return index


def _root(falling: _Floats, grid: _Floats) -> _Floats:
    after = np.argmax(falling <= 0, axis=1)
    rows = np.arange(len(falling))
    high, low = falling[rows, after - 1], falling[rows, after]
    index: _Floats = grid[after - 1] + (grid[after] - grid[after - 1]) * high / (high - low)
    return index


def _grid(num_pulls: int, low: float, high: float) -> _Floats:
    """Return the grid points: at the first every arm is worth a pull, at the last no arm is."""
    points = _FINE if num_pulls <= 200 else _COARSE  # tunable
    if (low, high) == (0, 1):
        return np.linspace(0, 1, points, dtype=np.float32)
    margin = (high - low) / points  # a mean that rounds to a bound must still lie between two points
    return np.linspace(low - margin, high + margin, points)


def _tetrahedral(used: _Count) -> _Count:
    """Return the number of states with less than u pulls used: Σ_{v < u} (v + 1) (v + 2) / 2."""
    return used * (used + 1) * (used + 2) // 6
