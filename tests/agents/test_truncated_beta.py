"""Arms whose means lie between other bounds than 0 and 1: posteriors that are cut Beta laws."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from rl2meta.agents.references.bandits import bernoulli_references
from rl2meta.agents.references.priors import BetaPrior, Statistics, TruncatedBetaPrior
from rl2meta.agents.references.truncated_beta import sample_truncated_beta
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.predictions import predictive_means
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks

BOUNDS = [(0.0, 0.5), (0.2, 0.7), (0.9, 1.0), (0.45, 0.46)]
SEEN = [(0, 0), (1, 0), (0, 1), (3, 4), (30, 2), (2, 30), (0, 50), (50, 0), (70, 60)]


def integral(successes: float, failures: float, low: float, high: float) -> float:
    """∫ p^s (1 − p)^f dp over the interval, over the greatest value there."""
    peak = min(max(successes / max(successes + failures, 1), low), high)

    def density(p: float) -> float:
        ratio = scipy.special.xlogy(successes, p / peak if peak else 1.0)
        return math.exp(ratio + scipy.special.xlogy(failures, (1 - p) / (1 - peak) if peak < 1 else 1.0))

    top = scipy.special.xlogy(successes, peak) + scipy.special.xlogy(failures, 1 - peak)
    inside = [peak] if low < peak < high else None
    return float(scipy.integrate.quad(density, low, high, points=inside, epsrel=1e-11)[0] * math.exp(top))


def statistics(seen: list[tuple[int, int]], times: int = 1, seed: int = 0) -> Statistics:
    counts = torch.tensor(seen, dtype=torch.float32)
    pulls, wins = counts.sum(dim=1).repeat(times, 1), counts[:, 0].repeat(times, 1)
    return Statistics(pulls, wins, int(pulls.max()), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bounds", BOUNDS)
def test_posterior_means_are_ratios_of_integrals(bounds: tuple[float, float]) -> None:
    expected = [integral(s + 1, f, *bounds) / integral(s, f, *bounds) for s, f in SEEN]
    mean = TruncatedBetaPrior(200, *bounds).mean(statistics(SEEN))[0]
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("bounds", [(0.0, 0.5), (0.2, 0.7), (0.9999, 1.0)])
def test_the_table_does_not_depend_on_the_length_of_the_trial(bounds: tuple[float, float]) -> None:
    short, long = predictive_means(40, *bounds), predictive_means(900, *bounds)
    np.testing.assert_allclose(short, long[: len(short)], rtol=1e-11)


def test_bounds_next_to_0_and_1_give_what_0_and_1_give() -> None:
    np.testing.assert_allclose(predictive_means(300, 0.0, 1 - 1e-15), predictive_means(300), rtol=1e-11)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("seen", SEEN)
def test_draws_have_the_law_of_the_cut_beta(seen: tuple[int, int], bounds: tuple[float, float]) -> None:
    (s, f), (low, high) = seen, bounds
    counts = torch.tensor([[float(s)]]), torch.tensor([[float(f)]])
    draws = sample_truncated_beta(*counts, low, high, 4000, torch.Generator().manual_seed(5))
    assert draws.shape == (4000, 1, 1) and draws.dtype == torch.float32
    grid = np.linspace(low, high, 20_001)
    log_density = scipy.special.xlogy(s, grid) + scipy.special.xlog1py(f, -grid)
    cdf = scipy.integrate.cumulative_trapezoid(np.exp(log_density - log_density.max()), grid, initial=0)
    law = lambda p: np.interp(p, grid, cdf / cdf[-1])  # noqa: E731
    assert scipy.stats.kstest(draws.double().flatten().numpy(), law).pvalue > 1e-4


def test_draws_on_0_to_1_are_those_of_a_beta() -> None:
    counts = torch.tensor([[7.0]]), torch.tensor([[2.0]])
    draws = sample_truncated_beta(*counts, 0.0, 1.0, 5000, torch.Generator().manual_seed(1))
    assert scipy.stats.kstest(draws.flatten().numpy(), scipy.stats.beta(8, 3).cdf).pvalue > 1e-3


def test_draws_do_not_mix_tasks_or_arms() -> None:
    prior = TruncatedBetaPrior(200, 0.2, 0.7)
    draws = prior.sample(statistics(SEEN, times=300), 20).double()  # [20, 300, arms]
    mean = prior.mean(statistics(SEEN))[0]
    error = draws.std(dim=(0, 1)) / math.sqrt(6000)
    assert ((draws.mean(dim=(0, 1)) - mean).abs() < 4 * error + 1e-7).all()
    assert (draws >= 0.2 - 1e-7).all() and (draws <= 0.7 + 1e-7).all()


def test_the_prior_is_worth_the_pulls_of_the_beta_of_its_moments() -> None:
    nothing = statistics([(0, 0)])
    assert TruncatedBetaPrior(5, 0.0, 1.0).weight(nothing).item() == pytest.approx(2)
    law = scipy.stats.uniform(0.2, 0.5)
    worth = TruncatedBetaPrior(5, 0.2, 0.7).weight(nothing).item()
    beta = scipy.stats.beta(law.mean() * worth, (1 - law.mean()) * worth)
    assert beta.var() == pytest.approx(law.var())
    same = torch.full((1, 1), 0.4)
    assert TruncatedBetaPrior(5, 0.2, 0.7).log_density(nothing, same) == BetaPrior().log_density(
        nothing, same
    )


@pytest.mark.parametrize("name", ["greedy", "ucb1", "epsilon_greedy", "gittins"])
def test_longer_trials_than_the_table_are_refused(name: str) -> None:
    family = BernoulliBandits(2, 0.2, 0.7)
    agent = bernoulli_references(2, 5, 0.2, 0.7)[name].build()
    tasks = sample_tasks(family, 3, 0, "test")
    with pytest.raises(ValueError, match="num_pulls=5 pulls at most, got pull 6"):
        RolloutWorker(family).run(agent, tasks, 6, 0)


def earned(
    family: BernoulliBandits, name: str, num_pulls: int, low: float, high: float, num_tasks: int = 20_000
) -> np.ndarray:
    """Pseudo-returns [tasks]: what the pulled arms pay on average."""
    agent = bernoulli_references(family.num_arms, num_pulls, low, high)[name].build()
    tasks = sample_tasks(family, num_tasks, 1, "test")
    paid = RolloutWorker(family).run(agent, tasks, num_pulls, 1).per_task("expected_reward")
    return paid.sum(dim=1).numpy()


def test_gittins_with_the_right_prior_earns_the_bayes_optimal_value() -> None:
    """Where all arms pay rarely, a failure says little; the prior U[0, 1] gives arms up too early."""
    family = BernoulliBandits(3, 0.0, 0.2)
    right, wrong = (earned(family, "gittins", 20, 0.0, high) for high in (0.2, 1.0))
    exact = family.bayes_optimal_return(20)
    assert exact is not None
    assert abs(right.mean() - exact) < 4 * right.std() / math.sqrt(len(right)) + 0.002 * exact
    gain = right - wrong
    assert gain.mean() > 4 * gain.std() / math.sqrt(len(gain))


def test_every_reference_is_near_optimal_or_below() -> None:
    family = BernoulliBandits(4, 0.3, 0.6)
    exact = family.bayes_optimal_return(12)
    assert exact is not None
    for name in bernoulli_references(4, 12, 0.3, 0.6):
        mean = earned(family, name, 12, 0.3, 0.6, num_tasks=8_000)
        error = mean.std() / math.sqrt(len(mean))
        assert 12 * 0.45 - 4 * error < mean.mean() < exact + 4 * error, name
