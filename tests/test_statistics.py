"""Intervals against closed forms, against scipy.stats, and against what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from rl2meta.statistics import mean_interval, paired_difference, t_quantile


def test_two_samples_have_a_closed_form():
    # n = 2: one degree of freedom is Cauchy's distribution, whose 75 % point is tan(π/4) = 1.
    # Samples 1 and 5: mean 3, s² = (4 + 4) / 1 = 8, s / √2 = 2.
    interval = mean_interval([1.0, 5.0], confidence=0.5)
    assert interval == pytest.approx((3.0, 1.0, 5.0, 2.0), abs=1e-12)


def test_three_samples_have_a_closed_form():
    # Two degrees of freedom: t_p = (2p − 1) / √(2p(1 − p)), at p = 0.975: 0.95 / √0.04875.
    assert t_quantile(3, 0.95) == pytest.approx(0.95 / math.sqrt(0.04875), rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 10, 1000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_scipy_stats_agrees(n, confidence):
    samples = np.random.default_rng(n).exponential(size=n)
    interval = mean_interval(samples, confidence)
    low, high = stats.t.interval(confidence, n - 1, loc=samples.mean(), scale=stats.sem(samples))
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-10)
    assert interval.standard_error == pytest.approx(stats.sem(samples), rel=1e-12)


def test_each_column_has_its_own_interval():
    samples = np.random.default_rng(0).normal(size=(7, 3, 2))
    whole = mean_interval(samples)
    assert all(field.shape == (3, 2) for field in whole)
    alone = mean_interval(samples[:, 2, 1])
    assert [field[2, 1] for field in whole] == pytest.approx(list(alone), rel=1e-13)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    draws = rng.normal(loc=3.0, scale=5.0, size=(5, 20_000))
    interval = mean_interval(draws, 0.9)
    covered = np.mean((interval.low <= 3.0) & (interval.high >= 3.0))
    # Standard error of the share: √(0.9 · 0.1 / 20000) = 0.0021. Normal quantiles would give 0.825 here.
    assert covered == pytest.approx(0.9, abs=4 * 0.0021)


def test_pairing_removes_what_the_tasks_contribute():
    rng = np.random.default_rng(2)
    task = rng.normal(scale=100.0, size=50)
    first, second = task + rng.normal(size=50) + 1.0, task + rng.normal(size=50)
    paired = paired_difference(first, second)
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (paired.low, paired.high) == pytest.approx((low, high), rel=1e-10)
    assert paired.standard_error < 0.05 * mean_interval(first).standard_error


def test_float32_is_averaged_in_float64():
    samples = np.array([1e8, 1e8 + 8, 1e8 + 16], dtype=np.float32)
    assert mean_interval(samples).mean == 1e8 + 8


@pytest.mark.parametrize("samples", [3.0, [], [1.0], np.ones((1, 4))])
def test_fewer_than_two_samples_are_refused(samples):
    with pytest.raises(ValueError, match="expected at least 2 samples"):
        mean_interval(samples)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, float("nan")])
def test_a_confidence_outside_0_1_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence in"):
        mean_interval([1.0, 2.0], confidence)


def test_unequal_pairs_are_refused():
    with pytest.raises(ValueError, match=r"expected pairs, got arrays of shapes \(3,\) and \(1,\)"):
        paired_difference([1.0, 2.0, 3.0], [1.0])
