"""Statistics over seeds and tasks against SciPy, closed forms, re-indexing, and what intervals promise."""

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from rl2meta import resampling
from rl2meta.aggregates import (
    curve_over_seeds,
    difference_over_seeds,
    improvement_over_seeds,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    over_seeds,
    over_tasks,
    performance_profile,
    probability_of_improvement,
    profile_over_seeds,
    shortfall,
)

EXACT = 1e-9


def scores(seeds, tasks, stream=0):
    """Seeds, tasks and their pairs all vary."""
    rng = np.random.default_rng([stream, seeds, tasks])
    return rng.normal(size=(seeds, 1)) + 2 * rng.normal(size=tasks) + rng.exponential(size=(seeds, tasks))


def drawn(seed, stream, resamples, n):
    """The draws that the module promises."""
    return np.random.Generator(np.random.PCG64([seed, stream])).integers(n, size=(resamples, n))


def trimmed(x):
    return stats.trim_mean(x, 0.25, axis=None)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 7), (5, 40), (20, 11)])
def test_points_are_those_of_scipy(shape):
    x = scores(*shape)
    assert interquartile_mean(x) == pytest.approx(trimmed(x), abs=EXACT)
    assert median(x) == pytest.approx(statistics.median(x.ravel()), abs=EXACT)
    assert mean(x) == pytest.approx(math.fsum(x.ravel()) / x.size, abs=EXACT)


def test_the_optimality_gap_of_a_normal_law_has_a_closed_form():
    # E max(0, γ − X) = γ Φ(γ) + φ(γ) for standard normal X, here at the quantiles of 100,000 equal shares.
    x = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000).reshape(10, -1)
    want = 0.3 * stats.norm.cdf(0.3) + stats.norm.pdf(0.3)
    assert optimality_gap(x, 0.3) == pytest.approx(want, abs=1e-5)


def test_each_task_may_have_its_own_ceiling():
    assert optimality_gap([[1.0, 5.0], [3.0, 9.0]], [2.0, 8.0]) == pytest.approx((1 + 3 + 0 + 0) / 4)
    gap = over_seeds(shortfall([[1.0, 5.0], [3.0, 9.0]], [2.0, 8.0]), resamples=10)
    assert gap.mean == pytest.approx(1.0)


def test_the_probability_of_improvement_is_mann_and_whitneys():
    x, y = np.round(scores(4, 30)), np.round(scores(3, 30, stream=1))
    assert (x[:, None] == y).any()
    u = stats.mannwhitneyu(x, y, axis=0).statistic
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(u) / (4 * 3), abs=EXACT)
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)


def test_the_profile_is_the_share_above_each_threshold():
    x = np.round(scores(4, 30))
    thresholds = np.array([-100.0, -1.0, 0.0, 0.5, 2.0, 100.0])
    survival = stats.ecdf(x.ravel()).sf.evaluate(thresholds)
    assert performance_profile(x, thresholds) == pytest.approx(survival, abs=EXACT)
    # The area under the profile over scores that are at least 0 is their mean.
    positive = np.abs(x)
    grid = np.arange(0, positive.max())
    assert performance_profile(positive, grid).sum() == pytest.approx(mean(positive), abs=EXACT)


def reindexed(x, statistic, seed, resamples, stream=1):
    seeds, tasks = drawn(seed, stream, resamples, len(x)), drawn(seed, 0, resamples, x.shape[1])
    return np.array([statistic(x[np.ix_(s, t)]) for s, t in zip(seeds, tasks, strict=True)])


def agrees(interval, values):
    want = (*np.percentile(values, [5, 95], axis=0), np.std(values, axis=0, ddof=1))
    for got, wanted in zip(interval[1:], want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=EXACT)


@pytest.mark.parametrize("shape", [(1, 9), (3, 6), (4, 301)])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    ("statistic", "naive"),
    [(mean, np.mean), (median, np.median), (interquartile_mean, trimmed), (np.max, np.max)],
)
def test_weights_give_what_indices_give(statistic, naive, rounded, shape, monkeypatch):
    monkeypatch.setattr(resampling, "_CELLS", 2500)  # several chunks, the last of them shorter
    x = np.round(scores(*shape)) if rounded else scores(*shape)
    interval = over_seeds(x, statistic, resamples=100, confidence=0.9, seed=3)
    assert interval.mean == pytest.approx(naive(x), abs=EXACT)
    agrees(interval, reindexed(x, naive, 3, 100))


def test_weights_give_what_indices_give_for_two_methods():
    x, y = np.round(scores(4, 30)), np.round(scores(3, 30, stream=1))
    how = {"resamples": 100, "confidence": 0.9, "seed": 5}
    tasks, of_x, of_y = drawn(5, 0, 100, 30), drawn(5, 1, 100, 4), drawn(5, 2, 100, 3)
    pairs = [(x[np.ix_(s, t)], y[np.ix_(r, t)]) for t, s, r in zip(tasks, of_x, of_y, strict=True)]
    agrees(difference_over_seeds(x, y, **how), [a.mean() - b.mean() for a, b in pairs])
    agrees(
        difference_over_seeds(x, y, interquartile_mean, **how), [trimmed(a) - trimmed(b) for a, b in pairs]
    )
    wins = [np.mean(stats.mannwhitneyu(a, b, axis=0).statistic) / 12 for a, b in pairs]
    interval = improvement_over_seeds(x, y, **how)
    agrees(interval, wins)
    assert interval.mean == pytest.approx(probability_of_improvement(x, y), abs=EXACT)


def test_curves_and_profiles_give_what_indices_give():
    values = np.stack([scores(4, 30, stream) for stream in range(3)], axis=2)
    curve = curve_over_seeds(values, resamples=100, confidence=0.9, seed=2)
    agrees(curve, reindexed(values, lambda x: x.mean(axis=(0, 1)), 2, 100))
    np.testing.assert_allclose(curve.mean, values.mean(axis=(0, 1)), atol=EXACT)
    x, thresholds = np.round(values[..., 0]), np.array([-100.0, 0.0, 0.5, 2.0, 100.0])
    profile = profile_over_seeds(x, thresholds, resamples=100, confidence=0.9, seed=2)
    agrees(profile, reindexed(x, lambda z: (z[..., None] > thresholds).mean(axis=(0, 1)), 2, 100))
    np.testing.assert_allclose(profile.mean, performance_profile(x, thresholds), atol=EXACT)


@pytest.mark.parametrize("shape", [(1, 50), (3, 50), (20, 10), (6, 1)])
def test_the_variance_of_the_mean_is_owens(shape):
    x = scores(*shape)
    rows, columns = x.mean(axis=1, keepdims=True), x.mean(axis=0, keepdims=True)
    rest = x - rows - columns + x.mean()
    parts = [(rows - x.mean()) / shape[0], (columns - x.mean()) / shape[1], rest / x.size]
    want = math.sqrt(sum((part**2).sum() for part in parts))
    got = over_seeds(x, resamples=40_000).standard_error
    # The deviation of B resamples has a relative error of about 1 / √(2 B) = 0.0035.
    assert got == pytest.approx(want, rel=4 * 0.0035)


@pytest.mark.parametrize("statistic", [mean, median, interquartile_mean])
def test_few_seeds_can_be_enumerated(statistic):
    """With the tasks fixed, 4 seeds have 4⁴ equally probable resamples."""
    x = scores(4, 25)
    naive = {mean: np.mean, median: np.median, interquartile_mean: trimmed}[statistic]
    every = np.array([naive(x[list(draw)]) for draw in itertools.product(range(4), repeat=4)])
    interval = over_seeds(x, statistic, resamples=40_000, resample_tasks=False)
    assert interval.standard_error == pytest.approx(every.std(), rel=4 * 0.0035)
    # As many resamples lie beyond the ends as should, to four standard errors √(0.025 · 0.975 / B) = 0.0008.
    for end, share in ((interval.low, 0.025), (interval.high, 0.975)):
        assert np.mean(every < end - EXACT) - 0.0032 <= share <= np.mean(every <= end + EXACT) + 0.0032


def test_scipys_bootstrap_of_the_seeds_agrees():
    x = scores(12, 40)
    ours = over_seeds(x, interquartile_mean, resamples=10_000, resample_tasks=False)
    theirs = stats.bootstrap(
        (np.arange(12),),
        lambda index: trimmed(x[index]),
        vectorized=False,
        n_resamples=1500,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    # An end is a quantile: its standard error at 1500 normal resamples is 2.67 σ / √1500 = 0.07 σ.
    margin = 4 * 0.07 * ours.standard_error
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=margin)


def covered(seeds, datasets=1000, tasks=40):
    """How often the interval holds the mean 0 of the law of seeds, tasks and their pairs."""
    rng = np.random.default_rng(seeds)
    values = rng.normal(size=(seeds, 1, datasets)) + rng.normal(size=(1, tasks, datasets))
    values += rng.normal(size=values.shape)
    interval = curve_over_seeds(values, resamples=500)
    return np.mean((interval.low <= 0) & (interval.high >= 0))


def test_twenty_seeds_cover_what_the_method_earns_and_three_do_not():
    # The standard error of a share of 0.95 in 1,000 datasets is 0.007; resampling narrows by √(19 / 20).
    assert 0.91 <= covered(20) <= 0.97
    assert 0.70 <= covered(3) <= 0.82


def test_pairing_in_tasks_removes_what_the_tasks_contribute():
    rng = np.random.default_rng(4)
    task = 100 * rng.normal(size=200)
    x, y = task + rng.normal(size=(5, 200)) + 1.0, task + rng.normal(size=(4, 200))
    assert difference_over_seeds(x, y).standard_error < 0.05 * over_seeds(x).standard_error
    assert difference_over_seeds(x, y).mean == pytest.approx(x.mean() - y.mean())
    same = difference_over_seeds(x, x, resample_tasks=False)
    assert same.mean == 0 and same.standard_error > 0  # the seeds of the two are drawn apart


def test_one_seed_gives_the_bootstrap_over_tasks():
    x = scores(1, 100)
    assert over_seeds(x, resamples=20_000).standard_error == pytest.approx(x.std() / 10, rel=0.02)


def test_over_tasks_is_students_interval_of_the_means_over_seeds():
    x = scores(3, 50)
    per_task = (x[0] + x[1] + x[2]) / 3
    low, high = stats.t.interval(0.95, 49, loc=per_task.mean(), scale=stats.sem(per_task))
    assert (over_tasks(x).low, over_tasks(x).high) == pytest.approx((low, high), abs=EXACT)
    assert over_tasks(np.ones((3, 50, 4))).mean.shape == (4,)


def test_the_draws_do_not_depend_on_the_machine():
    """These are draws of NumPy's PCG64 streams; were they others, every published interval would change."""
    x = np.arange(12.0).reshape(3, 4)
    first, second = (over_seeds(x, resamples=500, seed=7) for _ in range(2))
    assert first == second != over_seeds(x, resamples=500, seed=8)


@pytest.mark.parametrize("x", [[1.0, 2.0], np.ones((0, 3)), np.ones((2, 3, 4)), 1.0])
def test_what_is_no_matrix_is_refused(x):
    with pytest.raises(ValueError, match=r"expected scores \[seeds, tasks\], got an array of shape"):
        over_seeds(x)


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(ValueError, match="expected finite scores"):
        mean([[1.0, math.nan]])
    with pytest.raises(ValueError, match="expected several seeds or tasks"):
        over_seeds([[1.0, 2.0]], resample_tasks=False)
    with pytest.raises(ValueError, match="same tasks, got 3 and 2 tasks"):
        difference_over_seeds(np.ones((2, 3)), np.ones((2, 2)))
    for wrong in ({"confidence": 95}, {"resamples": 1}):
        with pytest.raises(ValueError, match=r"expected resamples >= 2 and confidence in \(0, 1\)"):
            over_seeds(np.ones((2, 3)), **wrong)
