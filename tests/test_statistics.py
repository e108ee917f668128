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


def _brute_force(samples, clusters):
    """Liang and Zeger's variance of a mean, as a double sum over all pairs of samples of one cluster."""
    n, count = len(samples), len(set(clusters))
    rest = samples - samples.mean(axis=0)
    pairs = sum(rest[i] * rest[j] for i in range(n) for j in range(n) if clusters[i] == clusters[j])
    return np.sqrt(count / (count - 1) * pairs / n**2)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_samples_of_a_cluster_are_taken_together(count):
    rng = np.random.default_rng(count)
    clusters = rng.permutation(np.arange(40) % count) * 7 - 3  # any labels, in any order, of unequal number
    samples = rng.normal(size=(40, 2)) + rng.normal(size=(1000, 2))[clusters]
    interval = mean_interval(samples, 0.9, clusters)
    standard_error = _brute_force(samples, clusters)
    margin = stats.t.ppf(0.95, count - 1) * standard_error
    np.testing.assert_allclose(interval.mean, samples.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(interval.standard_error, standard_error, rtol=1e-12)
    np.testing.assert_allclose(interval.high - interval.mean, margin, rtol=1e-12)
    np.testing.assert_allclose(interval.mean - interval.low, margin, rtol=1e-12)


def test_clusters_of_one_sample_give_the_ordinary_interval():
    samples = np.random.default_rng(0).normal(size=(50, 3))
    for got, want in zip(mean_interval(samples, clusters=np.arange(50)), mean_interval(samples), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_the_clustered_interval_covers_the_mean_as_often_as_it_says():
    """Twelve clusters of ten samples that differ little: intervals of 120 samples cover far too seldom."""
    rng, clusters = np.random.default_rng(0), np.repeat(np.arange(12), 10)
    samples = rng.normal(size=(12, 4000)).repeat(10, axis=0) + 0.3 * rng.normal(size=(120, 4000))
    together, apart = mean_interval(samples, clusters=clusters), mean_interval(samples)
    covered = [float(np.mean((each.low < 0) & (each.high > 0))) for each in (together, apart)]
    assert abs(covered[0] - 0.95) < 0.012  # 3.5 standard errors
    assert covered[1] < 0.6


def test_pairs_are_clustered_too():
    rng, clusters = np.random.default_rng(1), np.arange(30) % 4
    a, b = rng.normal(size=(2, 30))
    want = _brute_force(a - b, clusters)
    assert paired_difference(a, b, clusters=clusters).standard_error == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("clusters", [[0, 0, 0], [0, 1]])
def test_one_cluster_and_another_number_of_them_are_refused(clusters):
    with pytest.raises(ValueError, match=r"expected at least 2 clusters|expected 3 clusters"):
        mean_interval([1.0, 2.0, 3.0], clusters=clusters)
