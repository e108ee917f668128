import math

import numpy as np
import pytest
import scipy.stats
import torch

from rl2meta.agents.references.dependent_bandits import TwoPointPrior, UniformPrior, dependent_references
from rl2meta.agents.references.priors import Statistics
from rl2meta.envs.dependent_bandits import DependentBandits
from rl2meta.evaluation import evaluate
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks

LAWS = ["uniform", "easy", "medium", "hard"]
BETTER = [None, 0.9, 0.75, 0.6]
INDEPENDENT = ["ucb1", "thompson_independent", "gittins_independent"]
# Arm 1: two successes and a failure. Arm 2: one success and three failures. So 5 of 7 signs are for arm 1.
SEEN = Statistics(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 1.0]]), 7, torch.Generator())


def regrets(law: str, name: str, pulls: int = 100, tasks: int = 4000) -> np.ndarray:
    family = DependentBandits(law)
    agent = dependent_references(family.model.better, pulls)[name].build()
    drawn = sample_tasks(family, tasks, 1, "test")
    return evaluate(agent, RolloutWorker(family), drawn, pulls, 1).regrets.sum(axis=1)


def by_bayes_theorem(p: np.ndarray, weight: np.ndarray) -> float:
    """The mean of p₁ after what SEEN holds, each arm's successes and failures by themselves."""
    posterior = weight * p**2 * (1 - p) * (1 - p) * p**3
    return float((posterior * p).sum() / posterior.sum())


@pytest.mark.parametrize("better", [0.9, 0.75, 0.6])
def test_two_point_posterior(better: float) -> None:
    expected = by_bayes_theorem(np.array([better, 1 - better]), np.array([0.5, 0.5]))
    assert TwoPointPrior(better).mean(SEEN).item() == pytest.approx(expected, abs=1e-6)
    many = Statistics(SEEN.pulls.expand(20_000, 2), SEEN.totals.expand(20_000, 2), 7, torch.Generator())
    drawn = TwoPointPrior(better).sample(many)
    assert set(drawn.flatten().tolist()) == set(torch.tensor([better, 1 - better]).tolist())
    assert float(drawn.double().mean()) == pytest.approx(expected, abs=0.01)


def test_uniform_posterior() -> None:
    p = np.linspace(0, 1, 100_001)
    assert UniformPrior().mean(SEEN).item() == pytest.approx(by_bayes_theorem(p, np.ones_like(p)), abs=1e-6)
    many = Statistics(SEEN.pulls.expand(5000, 2), SEEN.totals.expand(5000, 2), 7, torch.Generator())
    drawn = UniformPrior().sample(many).flatten().numpy()
    assert scipy.stats.kstest(drawn, scipy.stats.beta(6, 3).cdf).pvalue > 1e-3


@pytest.mark.parametrize("law", LAWS)
def test_the_simulated_bayes_agent_earns_the_exact_value(law: str) -> None:
    family, pulls = DependentBandits(law), 100
    best = {"uniform": 0.75, "easy": 0.9, "medium": 0.75, "hard": 0.6}[law]
    ours = regrets(law, "greedy", pulls, 10_000)
    exact = pulls * best - family.bayes_optimal_return(pulls)
    assert abs(ours.mean() - exact) < 3 * ours.std() / math.sqrt(len(ours))


@pytest.mark.parametrize("law", ["uniform", "easy"])
def test_to_know_the_law_pays(law: str) -> None:
    mean = {name: regrets(law, name).mean() for name in dependent_references(None, 100)}
    assert mean["greedy"] < min(mean["thompson"], mean["ucb1"], mean["gittins_independent"])
    assert mean["thompson"] < mean["thompson_independent"] < 0.2 * mean["random"]
    chance = 25 if law == "uniform" else 40
    assert mean["random"] == pytest.approx(chance, rel=0.05)


def test_a_failure_of_one_arm_speaks_for_the_other() -> None:
    failed = Statistics(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]), 1, torch.Generator())
    for better in BETTER:
        first, second = dependent_references(better, 10)["greedy"].build().rule(failed)[0]
        assert first < 0.5 < second
        assert first + second == 1


def test_scores_stay_numbers_in_a_long_one_sided_trial() -> None:
    seen = Statistics(torch.tensor([[5000.0, 0.0]]), torch.tensor([[5000.0, 0.0]]), 5000, torch.Generator())
    for better in BETTER:
        for name in ("greedy", "thompson"):
            scores = dependent_references(better, 10)[name].build().rule(seen)[0]
            assert scores.argmax() == 0 and scores.isfinite().all()


def test_the_table() -> None:
    references = dependent_references(0.6, 20)
    assert list(references) == ["random", "greedy", "thompson", *INDEPENDENT]
    for name, reference in references.items():
        assert ("independent" in reference.description) == (name in INDEPENDENT)
        for constant, values in reference.grid.items():
            assert all(reference.build(**{constant: value}) for value in values)
    with pytest.raises(ValueError, match=r"expected better in \(1/2, 1\), or None, got 0.4"):
        dependent_references(0.4, 20)
