import time
from functools import lru_cache

import pytest
import scipy.integrate

from rl2meta.envs.bayes_optimal import bayes_optimal_bernoulli


def integral(successes: int, failures: int, bounds: tuple[float, float]) -> float:
    return float(scipy.integrate.quad(lambda p: p**successes * (1 - p) ** failures, *bounds)[0])


@lru_cache
def posterior_mean(successes: int, failures: int, bounds: tuple[float, float]) -> float:
    return integral(successes + 1, failures, bounds) / integral(successes, failures, bounds)


def plain_recursion(
    arms: tuple[tuple[int, int], ...], pulls_left: int, bounds: tuple[float, float] = (0.0, 1.0)
) -> float:
    """The definition: every arm tried in every state, nothing shared, nothing sorted."""
    if pulls_left == 0:
        return 0.0
    values = []
    for i, (successes, failures) in enumerate(arms):
        mean = posterior_mean(successes, failures, bounds)
        success = (*arms[:i], (successes + 1, failures), *arms[i + 1 :])
        failure = (*arms[:i], (successes, failures + 1), *arms[i + 1 :])
        won, lost = (plain_recursion(after, pulls_left - 1, bounds) for after in (success, failure))
        values.append(mean * (1 + won) + (1 - mean) * lost)
    return max(values)


@pytest.mark.parametrize("num_pulls", [1, 2, 3, 4])
@pytest.mark.parametrize("num_arms", [1, 2, 3])
def test_equals_a_recursion_that_knows_nothing_of_exchangeable_arms(num_arms: int, num_pulls: int) -> None:
    expected = plain_recursion(((0, 0),) * num_arms, num_pulls)
    assert bayes_optimal_bernoulli(num_arms, num_pulls) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bounds", [(0.0, 0.5), (0.2, 0.7), (0.9, 1.0), (0.4, 0.41)])
@pytest.mark.parametrize(("num_arms", "num_pulls"), [(1, 3), (2, 1), (2, 4), (3, 3)])
def test_other_bounds_equal_the_recursion_too(
    num_arms: int, num_pulls: int, bounds: tuple[float, float]
) -> None:
    expected = plain_recursion(((0, 0),) * num_arms, num_pulls, bounds)
    assert bayes_optimal_bernoulli(num_arms, num_pulls, *bounds) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("num_arms", "num_pulls", "value", "digits"),
    [
        # By hand: pull any arm; after a success (2/3) stay, after a failure (1/3) take the other (1/2).
        (2, 2, 0.5 + (0.5 * 2 / 3 + 0.5 * 0.5), 1e-12),
        (5, 10, 6.660, 5e-4),
        (10, 10, 6.714, 5e-4),
        (2, 10, 10 * 2 / 3 - 0.645, 5e-4),
        (2, 100, 64.918, 5e-4),
    ],
)
def test_known_values(num_arms: int, num_pulls: int, value: float, digits: float) -> None:
    assert bayes_optimal_bernoulli(num_arms, num_pulls) == pytest.approx(value, abs=digits)


def test_more_arms_than_pulls_add_nothing() -> None:
    assert bayes_optimal_bernoulli(50, 6) == bayes_optimal_bernoulli(6, 6)
    assert bayes_optimal_bernoulli(6, 6) > bayes_optimal_bernoulli(5, 6)


@pytest.mark.parametrize(("num_arms", "num_pulls"), [(5, 100), (50, 500), (2, 200), (10**6, 10**6)])
def test_intractable_bandits_are_recognised_at_once(num_arms: int, num_pulls: int) -> None:
    start = time.perf_counter()
    assert bayes_optimal_bernoulli(num_arms, num_pulls) is None
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(("num_arms", "num_pulls"), [(0, 10), (5, 0), (-1, 1)])
def test_nonsense_is_refused(num_arms: int, num_pulls: int) -> None:
    with pytest.raises(ValueError, match=f"num_arms and num_pulls >= 1, got {num_arms} and {num_pulls}"):
        bayes_optimal_bernoulli(num_arms, num_pulls)
