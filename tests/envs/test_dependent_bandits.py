"""Two arms with p₂ = 1 − p₁: their laws, and the exact optimum against a search of all strategies."""

import warnings

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from pydantic import ValidationError

from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.batched import TaskEnv
from rl2meta.envs.checking import check_distribution
from rl2meta.envs.dependent_bandits import MAX_PULLS, DependentBandits, bayes_optimal_dependent
from rl2meta.tasks import sample_tasks

LAWS = ["uniform", "easy", "medium", "hard"]
EVERY_LAW = pytest.mark.parametrize("law", LAWS)
BETTER = {"easy": 0.9, "medium": 0.75, "hard": 0.6}
BEST = {"uniform": 0.75, **BETTER}  # E[max(p, 1 − p)]


@EVERY_LAW
def test_the_family_conforms(law) -> None:
    check_distribution(DependentBandits(law))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(TaskEnv(DependentBandits(law)), skip_render_check=True)


@EVERY_LAW
@pytest.mark.parametrize("split", ["train", "test"])
def test_means_follow_the_law_in_both_splits(law, split) -> None:
    means = sample_tasks(DependentBandits(law), 20_000, 0, split).parameters["means"]
    first, second = means.T
    torch.testing.assert_close(second, 1 - first)
    if law == "uniform":
        assert abs(float(first.mean()) - 0.5) < 4 * (12 * 20_000) ** -0.5
        assert abs(float(first.std()) - 12**-0.5) < 0.005
    else:
        high = torch.tensor(BETTER[law])
        assert set(first.tolist()) == {high.item(), torch.tensor(1 - BETTER[law]).item()}
        assert abs(float((first == high).float().mean()) - 0.5) < 4 * 0.5 / 20_000**0.5


def test_tasks_can_be_played_as_independent_arms() -> None:
    tasks = sample_tasks(DependentBandits("easy"), 4, 0, "test")
    envs = BernoulliBandits(num_arms=2).make_envs(4, torch.device("cpu"))
    envs.reset(seed=0, options={"tasks": tasks})
    *_, info = envs.step(torch.zeros(4, dtype=torch.int64))
    assert torch.equal(info["expected_reward"], tasks.parameters["means"][:, 0])
    torch.testing.assert_close(DependentBandits("easy").optimal_return(tasks), torch.full((4,), 0.9))


@EVERY_LAW
def test_one_arm_has_no_regret_and_the_other_the_gap(law) -> None:
    tasks = sample_tasks(DependentBandits(law), 100, 0, "test")
    first = tasks.parameters["means"][:, 0]
    envs = DependentBandits(law).make_envs(100, torch.device("cpu"))
    envs.reset(seed=0, options={"tasks": tasks})
    regrets = envs.step(torch.zeros(100, dtype=torch.int64))[-1]["regrets"]
    gap = 1 - 2 * first  # p₂ − p₁
    torch.testing.assert_close(regrets, torch.stack([gap.clamp(min=0), (-gap).clamp(min=0)], dim=1))


def test_another_law_is_refused() -> None:
    with pytest.raises(ValidationError, match="'uniform', 'easy', 'medium' or 'hard'"):
        DependentBandits("harder")


# The optimum


@pytest.mark.parametrize(
    ("law", "regret"), [("uniform", 1.221), ("easy", 0.625), ("medium", 1.000), ("hard", 2.312)]
)
def test_known_regrets_over_a_hundred_pulls(law, regret) -> None:
    value = DependentBandits(law).bayes_optimal_return(100)
    assert 100 * BEST[law] - value == pytest.approx(regret, abs=5e-4)


def best_of_all_strategies(weights: NDArray, chance: NDArray, pulls: int) -> float:
    """Bellman's recursion over the unnormalised posterior: both arms tried everywhere, no myopic shortcut."""
    if pulls == 0:
        return 0.0
    values = []
    for arm in (chance, 1 - chance):
        success, failure = weights * arm, weights * (1 - arm)
        after = [best_of_all_strategies(w, chance, pulls - 1) for w in (success, failure)]
        values.append(success.sum() + sum(after))
    return max(values)


@EVERY_LAW
@pytest.mark.parametrize("pulls", [1, 2, 3, 5])
def test_no_strategy_beats_the_myopic_one(law, pulls) -> None:
    if law == "uniform":
        nodes, weights = np.polynomial.legendre.leggauss(8)  # exact for polynomials of degree 15
        chance, weights = (nodes + 1) / 2, weights / 2
    else:
        chance, weights = np.array([BETTER[law], 1 - BETTER[law]]), np.array([0.5, 0.5])
    expected = best_of_all_strategies(weights, chance, pulls)
    assert DependentBandits(law).bayes_optimal_return(pulls) == pytest.approx(expected, abs=1e-12)


def test_long_trials_are_solved_exactly() -> None:
    # Σ_t Σ_k max(k + 1, t − k + 1) / ((t + 1)(t + 2)), in integers but for the last division.
    pulls = np.arange(3000)
    largest = [int(np.maximum(np.arange(t + 1), t - np.arange(t + 1)).sum()) + t + 1 for t in pulls]
    expected = (np.array(largest) / ((pulls + 1) * (pulls + 2))).sum()
    assert bayes_optimal_dependent(None, 3000) == pytest.approx(expected, rel=1e-12)
    # All is known in the end, so more pulls add no regret: 5/8 for easy, 1/2 where one sign settles it.
    assert 3000 * 0.9 - bayes_optimal_dependent(0.9, 3000) == pytest.approx(0.625, abs=1e-9)
    assert 3000 - bayes_optimal_dependent(1.0, 3000) == 0.5


def test_the_intractable_and_nonsense() -> None:
    assert bayes_optimal_dependent(0.6, MAX_PULLS + 1) is None
    assert DependentBandits().bayes_optimal_return(10**9) is None
    with pytest.raises(ValueError, match="expected num_pulls >= 1, got 0"):
        bayes_optimal_dependent(None, 0)
    for better in (0.5, 0.2, 1.1):
        with pytest.raises(ValueError, match=rf"expected better in \(1/2, 1\], got {better}"):
            bayes_optimal_dependent(better, 3)
