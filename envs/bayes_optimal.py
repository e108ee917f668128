"""Exact Bayes-optimal values: the expected return of the best possible learner on the task distribution."""

from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray

from rl2meta.predictions import predictive_means

MAX_TRANSITIONS = 20_000_000
"""Bandits with more (state, arm, outcome) triples count as intractable; so many take seconds and 0.5 GB."""

_Codes = NDArray[np.int32]
_Floats = NDArray[np.float64]
_Level = tuple[_Codes, _Codes]  # arms of each state [N, k], successors [2, N, k]


@lru_cache(maxsize=64)
def bayes_optimal_bernoulli(
    num_arms: int, num_pulls: int, low: float = 0.0, high: float = 1.0
) -> float | None:
    """Return the greatest expected total reward of ``num_pulls`` pulls of arms with means pᵢ ~ U[low, high].

    V_t(x) = maxᵢ p̂ᵢ (1 + V_{t+1}(x + success of i)) + (1 − p̂ᵢ) V_{t+1}(x + failure of i), V_n = 0, where
    p̂ᵢ is the arm's posterior mean, which is (sᵢ + 1) / (sᵢ + fᵢ + 2) on [0, 1], and x is the multiset of the
    arms' (successes sᵢ, failures fᵢ). The order of the arms does not matter, and with more than ``num_pulls``
    arms some are never pulled. The recursion is solved backwards.

    Returns:
        The value; or None, without computing it, if the dynamic programme exceeds ``MAX_TRANSITIONS``.

    Raises:
        ValueError: if the number of arms or of pulls is below 1.
    """
    if num_arms < 1 or num_pulls < 1:
        raise ValueError(f"expected num_arms and num_pulls >= 1, got {num_arms} and {num_pulls}")
    arms = min(num_arms, num_pulls)
    if arms == 1:
        return num_pulls * (low + high) / 2
    if 2 * arms * comb(num_pulls + 3, 4) // 2 > MAX_TRANSITIONS:  # two arms; comb counts both of their orders
        return None  # already too large with two arms
    sizes = _num_states(arms, num_pulls)
    if 2 * arms * sum(sizes) > MAX_TRANSITIONS:
        return None
    return _solve_backwards(_enumerate_levels(arms, sizes), predictive_means(num_pulls, low, high))


def _num_states(num_arms: int, num_pulls: int) -> list[int]:
    """Return the number of states after t = 0 … n − 1 pulls.

    It is Σ_{j <= k} of the coefficient of xᵗ yʲ in ∏_{m >= 1} (1 − y xᵐ)^−(m + 1): an arm with m pulls has
    m + 1 states, and j arms have been pulled.
    """
    counts = [[0] * num_pulls for _ in range(num_arms + 1)]  # [touched arms j][pulls t]
    counts[0][0] = 1
    for m in range(1, num_pulls):
        # j and t fall, so that counts[j - c] does not yet include arms with m pulls.
        for j in range(num_arms, 0, -1):
            for t in range(num_pulls - 1, m - 1, -1):
                most = min(j, t // m)
                counts[j][t] += sum(comb(m + c, c) * counts[j - c][t - c * m] for c in range(1, most + 1))
    return [sum(row[t] for row in counts) for t in range(num_pulls)]


def _enumerate_levels(num_arms: int, sizes: list[int]) -> list[_Level]:
    """List the states of every level, and the state of the next level for each outcome of each arm."""
    weights = _random_weights(len(sizes))
    arms = np.zeros((1, num_arms), dtype=np.int32)
    levels = []
    for size in sizes[1:]:
        successors, arms_after = _advance(arms, weights, size)
        levels.append((arms, successors))
        arms = arms_after
    end = np.zeros((2, *arms.shape), dtype=np.int32)  # the last pull always leads to the state of value 0
    return [*levels, (arms, end)]


def _advance(arms: _Codes, weights: NDArray[np.uint64], size: int) -> tuple[_Codes, _Codes]:
    """Return the successors' indices [2, N, k] and their arms [size, k].

    The key of a state is the sum of its arms' random weights, so it does not depend on the arms' order. If
    two states had the same 64-bit key, which is very unlikely, the number of states would be wrong.
    """
    outcomes = _outcomes(arms)  # [2, N, k]
    totals = weights[arms].sum(axis=1)[:, None] - weights[arms]
    keys, first, inverse = np.unique(totals + weights[outcomes], return_index=True, return_inverse=True)
    if len(keys) != size:
        raise RuntimeError(f"expected {size} states, got {len(keys)}: keys collide; change _random_weights")
    outcome, state, arm = np.unravel_index(first, outcomes.shape)
    after = arms[state]
    after[np.arange(size), arm] = outcomes[outcome, state, arm]
    return inverse.reshape(outcomes.shape).astype(np.int32), after


def _solve_backwards(levels: list[_Level], means: _Floats) -> float:
    value = np.zeros(1)
    for arms, successors in reversed(levels):
        mean, after = means[arms], value[successors]
        value = (mean * (1 + after[0]) + (1 - mean) * after[1]).max(axis=1)
    return float(value[0])


def _random_weights(num_pulls: int) -> NDArray[np.uint64]:
    size = (num_pulls + 1) * (num_pulls + 2) // 2
    return np.random.default_rng(0).integers(2**64, size=size, dtype=np.uint64)


# An arm with d pulls and s successes has the code d (d + 1) / 2 + s, so a failure adds d + 1 to the code.


def _outcomes(arms: _Codes) -> _Codes:
    """Return the codes after a success and after a failure, [2, N, k]."""
    pulls = _pulls(int(arms.max()) + 1)[arms]
    failure = arms + pulls + 1
    return np.stack([failure + 1, failure]).astype(np.int32)


def _pulls(num_codes: int) -> NDArray[np.int64]:
    pulls: NDArray[np.int64] = np.floor((np.sqrt(8 * np.arange(num_codes) + 1) - 1) / 2).astype(np.int64)
    return pulls
