from functools import lru_cache

import pytest
import scipy.integrate
import torch

from rl2meta.agents.references.gittins import gittins_index, gittins_indices


def states(num_pulls: int) -> list[tuple[int, int, int]]:
    """Every (successes, failures, remaining) that a trial of ``num_pulls`` can reach."""
    return [
        (s, d - s, num_pulls - used)
        for used in range(num_pulls)
        for d in range(used + 1)
        for s in range(d + 1)
    ]


Bounds = tuple[float, float]


def lookup(num_pulls: int, rows: list[tuple[int, int, int]], bounds: Bounds = (0.0, 1.0)) -> torch.Tensor:
    return gittins_index(num_pulls, *torch.tensor(rows).unbind(dim=1), *bounds)


@lru_cache
def posterior_mean(s: int, f: int, bounds: Bounds) -> float:
    above, below = (scipy.integrate.quad(lambda p, s=s: p**s * (1 - p) ** f, *bounds)[0] for s in (s + 1, s))
    return float(above / below)


def value(
    s: int, f: int, remaining: int, known: float, bounds: Bounds = (0.0, 1.0), *, must_play: bool = False
) -> float:
    """The best total of ``remaining`` pulls of this arm and a known one, by plain recursion."""
    if remaining == 0:
        return 0.0
    mean = posterior_mean(s, f, bounds)
    won, lost = (value(*after, remaining - 1, known, bounds) for after in ((s + 1, f), (s, f + 1)))
    play = mean * (1 + won) + (1 - mean) * lost
    # Choosing anew at every pull, without a word on retirement: that retiring is for good is a theorem.
    return play if must_play else max(play, known + value(s, f, remaining - 1, known, bounds))


def index_by_bisection(s: int, f: int, remaining: int, bounds: Bounds = (0.0, 1.0)) -> float:
    low, high = bounds
    for _ in range(20):
        known = (low + high) / 2
        playing = value(s, f, remaining, known, bounds, must_play=True) > remaining * known + 1e-12
        low, high = (known, high) if playing else (low, known)
    return (low + high) / 2


def test_last_pull_is_worth_the_posterior_mean() -> None:
    rows = [row for row in states(30) if row[2] == 1]
    expected = torch.tensor([(s + 1) / (s + f + 2) for s, f, _ in rows])
    assert len(rows) == 30 * 31 // 2
    torch.testing.assert_close(lookup(30, rows), expected, atol=1e-6, rtol=0)


def test_equals_bisection_over_a_plain_recursion() -> None:
    rows = [(0, 0, 4), (1, 0, 3), (0, 1, 3), (1, 1, 2), (0, 2, 2), (0, 0, 3), (0, 0, 2), (2, 0, 2)]
    expected = torch.tensor([index_by_bisection(*row) for row in rows])
    torch.testing.assert_close(lookup(4, rows), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("bounds", "digits"),
    # In a narrow interval a pull teaches little beside a thousandth of it, the distance of the grid's points.
    [((0.0, 0.5), 2e-5), ((0.2, 0.7), 2e-5), ((0.9, 1.0), 2e-5), ((0.4, 0.401), 2e-4)],
)
def test_other_bounds_equal_the_bisection_too(bounds: Bounds, digits: float) -> None:
    rows = [(0, 0, 4), (1, 0, 3), (0, 1, 3), (1, 1, 2), (0, 2, 2), (0, 0, 2), (2, 0, 2), (0, 3, 1), (3, 0, 1)]
    expected = torch.tensor([index_by_bisection(*row, bounds) for row in rows], dtype=torch.float64)
    tolerance = digits * (bounds[1] - bounds[0])
    torch.testing.assert_close(lookup(4, rows, bounds), expected, atol=tolerance, rtol=0)
    longer = gittins_indices(60, *bounds)
    assert bounds[0] <= longer.min() and longer.max() <= bounds[1]


def test_two_pulls_left_by_hand() -> None:
    # Play, stay after a success only: 1/2 + (1/2)(2/3) + (1/2)λ = 2λ, so λ = 5/9.
    torch.testing.assert_close(lookup(2, [(0, 0, 2)]), torch.tensor([5 / 9]), atol=1e-5, rtol=0)


def test_a_longer_future_and_a_success_raise_the_index_and_a_failure_lowers_it() -> None:
    rows = [row for row in states(40) if sum(row) <= 39]  # those with a pull to spare
    index = lookup(40, rows)
    assert (lookup(40, [(s, f, m + 1) for s, f, m in rows]) > index).all()
    assert (lookup(40, [(s + 1, f, m) for s, f, m in rows]) > index).all()
    assert (lookup(40, [(s, f + 1, m) for s, f, m in rows]) < index).all()


def test_the_index_does_not_depend_on_the_length_of_the_trial() -> None:
    rows = states(12)
    assert torch.equal(lookup(12, rows), lookup(50, rows))


def test_the_coarse_grid_of_long_trials_loses_little() -> None:
    rows = states(20)  # 201 pulls make the table switch to fewer grid points
    torch.testing.assert_close(lookup(201, rows), lookup(20, rows), atol=3e-4, rtol=0)


def test_the_table_is_cached_and_holds_every_state() -> None:
    assert gittins_indices(30) is gittins_indices(30)
    assert len(gittins_indices(30)) == len(states(30))


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="expected num_pulls >= 1, got 0"):
        gittins_indices(0)
