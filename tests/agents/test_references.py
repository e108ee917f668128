import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from rl2meta.agents.references.bandits import (
    IndexAgent,
    bernoulli_references,
    gaussian_references,
    optimistic_thompson,
    thompson,
)
from rl2meta.agents.references.priors import BetaPrior, NormalPrior, Statistics
from rl2meta.envs.bandits import BernoulliBandits, GaussianBandits
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.trial import TimeStep, Trajectory

PULLS = [[0.0, 3.0, 5.0], [2.0, 1.0, 1.0]]
WINS = [[0.0, 2.0, 2.0], [0.0, 1.0, 0.0]]
NAMES = ["random", "greedy", "epsilon_greedy", "ucb1", "thompson", "ots"]


def statistics(pulls=PULLS, totals=WINS, seed: int = 0) -> Statistics:
    pulls = torch.tensor(pulls)
    steps = int(pulls.sum(dim=1).max())
    return Statistics(pulls, torch.tensor(totals), steps, torch.Generator().manual_seed(seed))


def repeated(pulls: list[float], totals: list[float], times: int) -> Statistics:
    return statistics([pulls] * times, [totals] * times)


def choose(agent: IndexAgent, carry: Statistics):
    zeros = torch.zeros(len(carry.pulls))
    step = TimeStep(zeros.long(), torch.zeros_like(carry.pulls), zeros, zeros.bool())
    return agent.act(carry, step)[0]


def trajectory(action: Tensor, reward: Tensor, mask: Tensor) -> Trajectory:
    inputs = TimeStep(torch.zeros_like(action), torch.zeros(*action.shape, 3), reward, mask)
    return Trajectory(inputs, action, reward, mask, mask, {}, {})


# What is known


def test_adapt_counts_pulls_and_rewards_but_not_the_padding() -> None:
    action = torch.tensor([[0, 2], [1, 2], [1, 0], [1, 0]])  # [T, B]
    reward = torch.tensor([[1.0, 0.5], [0.0, 0.25], [1.0, -1.0], [9.0, 9.0]])
    mask = torch.tensor([[True, True], [True, True], [True, True], [False, False]])
    agent = bernoulli_references(3, 10)["greedy"].build()
    carry = agent.adapt(agent.begin(2, torch.Generator()), trajectory(action, reward, mask))
    assert carry.pulls.tolist() == [[1, 2, 0], [1, 0, 2]]
    assert carry.totals.tolist() == [[1, 1, 0], [-1, 0, 0.75]]


def test_one_long_phase_teaches_what_many_short_ones_do() -> None:
    draws = torch.Generator().manual_seed(1)
    action = torch.randint(3, (20, 4), generator=draws)
    reward = torch.randint(2, (20, 4), generator=draws).float()
    mask = torch.ones(20, 4, dtype=torch.bool)
    agent = bernoulli_references(3, 20)["greedy"].build()
    start = agent.begin(4, draws)
    at_once = agent.adapt(start, trajectory(action, reward, mask))
    stepwise = start
    for t in range(20):
        one = slice(t, t + 1)
        stepwise = agent.adapt(stepwise, trajectory(action[one], reward[one], mask[one]))
    assert torch.equal(at_once.pulls, stepwise.pulls)
    assert torch.equal(at_once.totals, stepwise.totals)
    assert at_once.steps == stepwise.steps == 20
    assert not start.pulls.any()  # the old carry is left as it was


@pytest.mark.parametrize("arm", range(3))
def test_posteriors_after_known_pulls(arm: int) -> None:
    pulls, total = PULLS[0][arm], WINS[0][arm]
    beta = scipy.stats.beta(total + 1, pulls - total + 1)
    normal = scipy.stats.norm(total / (pulls + 1), 1 / math.sqrt(pulls + 1))
    for prior, law in ((BetaPrior(), beta), (NormalPrior(), normal)):
        draws = prior.sample(statistics(), 5000)[:, 0, arm]
        assert scipy.stats.kstest(draws.numpy(), law.cdf).pvalue > 1e-3
        assert prior.mean(statistics())[0, arm].item() == pytest.approx(law.mean())


def test_log_densities_are_the_posteriors_up_to_a_constant() -> None:
    pulls, wins = np.array(PULLS), np.array(WINS)
    beta = scipy.stats.beta(wins + 1, pulls - wins + 1)
    normal = scipy.stats.norm(wins / (pulls + 1), 1 / np.sqrt(pulls + 1))
    for prior, law in ((BetaPrior(), beta), (NormalPrior(), normal)):
        here, there = (prior.log_density(statistics(), torch.full((2, 3), x)).numpy() for x in (0.3, 0.8))
        np.testing.assert_allclose(there - here, law.logpdf(0.8) - law.logpdf(0.3), atol=1e-5)


def test_a_draw_that_rounds_to_certainty_has_a_density() -> None:
    certain = torch.tensor([[1.0, 0.0]])
    assert BetaPrior().log_density(statistics([[4.0, 4.0]], [[4.0, 0.0]]), certain).tolist() == [[0.0, 0.0]]


# The rules


def test_greedy_scores_are_posterior_means() -> None:
    bernoulli = bernoulli_references(3, 10)["greedy"].build().rule(statistics())
    gaussian = gaussian_references(3, 10)["greedy"].build().rule(statistics())
    torch.testing.assert_close(bernoulli, torch.tensor([[1 / 2, 3 / 5, 3 / 7], [1 / 4, 2 / 3, 1 / 3]]))
    torch.testing.assert_close(gaussian, torch.tensor([[0, 2 / 4, 2 / 6], [0, 1 / 2, 0]]))


@pytest.mark.parametrize("c", [0.0, 0.3, 1.0])
def test_ucb1_scores(c: float) -> None:
    pulls, wins = np.array(PULLS), np.array(WINS)
    t = np.array([[9.0], [5.0]])  # 8 and 4 pulls were made
    expected = (wins + 1) / (pulls + 2) + c * np.sqrt(2 * np.log(t) / (pulls + 2))
    scores = bernoulli_references(3, 10)["ucb1"].build(c=c).rule(statistics())
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-6)
    expected = wins / (pulls + 1) + c * np.sqrt(2 * np.log(t) / (pulls + 1))
    scores = gaussian_references(3, 10)["ucb1"].build(c=c).rule(statistics())
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-6)


def test_gittins_scores_with_two_pulls_left() -> None:
    # Arm 1, never pulled: 5/9 (see test_gittins). Arm 0, after a success and a failure: play, stay after a
    # success only (p = 3/5): 1/2 + (1/2)(3/5) + (1/2)λ = 2λ, so λ = 8/15.
    agent = bernoulli_references(2, 4)["gittins"].build()
    scores = agent.rule(statistics([[2.0, 0.0]], [[1.0, 0.0]]))
    torch.testing.assert_close(scores, torch.tensor([[8 / 15, 5 / 9]]), atol=1e-5, rtol=0)


def test_one_sample_of_ots_is_thompson_and_more_keep_the_likeliest() -> None:
    law = scipy.stats.beta(np.array(WINS) + 1, np.array(PULLS) - np.array(WINS) + 1)
    one = optimistic_thompson(statistics(seed=3), BetaPrior(), samples=1)
    assert torch.equal(one, thompson(statistics(seed=3), BetaPrior()))
    draws = BetaPrior().sample(statistics(seed=3), 7).numpy()
    likeliest = law.logpdf(draws).sum(axis=2).argmax(axis=0)
    seven = optimistic_thompson(statistics(seed=3), BetaPrior(), samples=7)
    np.testing.assert_array_equal(seven.numpy(), draws[likeliest, [0, 1]])
    assert len(set(likeliest)) == 2  # each bandit keeps its own


@pytest.mark.parametrize(("epsilon", "best_share"), [(0.0, 1.0), (0.5, 0.5 + 0.5 / 3), (1.0, 1 / 3)])
def test_epsilon_is_the_probability_of_a_uniform_choice(epsilon: float, best_share: float) -> None:
    agent = bernoulli_references(3, 10)["epsilon_greedy"].build(epsilon=epsilon)
    arms = choose(agent, repeated([0.0, 3.0, 5.0], [0.0, 2.0, 2.0], 20000)).action
    shares = torch.bincount(arms, minlength=3) / len(arms)
    rest = (1 - best_share) / 2
    torch.testing.assert_close(shares, torch.tensor([rest, best_share, rest]), atol=0.015, rtol=0)


def test_random_pulls_every_arm_equally_often_whatever_is_known() -> None:
    agent = bernoulli_references(3, 10)["random"].build()
    arms = choose(agent, repeated([0.0, 3.0, 5.0], [0.0, 3.0, 0.0], 20000)).action
    assert scipy.stats.chisquare(torch.bincount(arms, minlength=3).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("name", ["greedy", "ucb1", "gittins"])
def test_ties_go_to_the_lowest_arm(name: str) -> None:
    agent = bernoulli_references(4, 12)[name].build()
    assert choose(agent, agent.begin(5, torch.Generator())).action.tolist() == [0] * 5
    tied = statistics([[2.0, 1.0, 1.0, 1.0]], [[0.0, 1.0, 0.0, 1.0]])
    assert choose(agent, tied).action.tolist() == [1]


@pytest.mark.parametrize("name", ["greedy", "ucb1", "gittins"])
def test_a_bandit_scores_the_same_alone_and_in_a_batch(name: str) -> None:
    rule = bernoulli_references(3, 10)[name].build().rule
    together = rule(statistics())
    alone = [rule(statistics([pulls], [wins])) for pulls, wins in zip(PULLS, WINS, strict=True)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("name", [*NAMES, "gittins"])
def test_the_mode_leaves_exploration_noise_out(name: str) -> None:
    agent = bernoulli_references(3, 10)[name].build()
    choice = choose(agent, repeated([0.0, 3.0, 5.0], [0.0, 2.0, 2.0], 500))
    assert len(choice.mode.unique()) == 1 and not choice.notes
    noisy = name in ("random", "epsilon_greedy", "thompson", "ots")
    assert (len(choice.action.unique()) > 1) == noisy
    if noisy:
        assert choice.mode[0] == 1  # the highest posterior mean
    else:
        assert torch.equal(choice.mode, choice.action)


# What they earn


def earned(num_arms: int, num_pulls: int, name: str, constants: dict) -> tuple[float, float]:
    """Mean and s.e. over 4000 held-out tasks, as nk/(k+1) less regret: the luck of the best arms is out."""
    distribution = BernoulliBandits(num_arms)
    tasks = sample_tasks(distribution, 4000, 1, "test")
    agent = bernoulli_references(num_arms, num_pulls)[name].build(**constants)
    trial = RolloutWorker(distribution).run(agent, tasks, num_pulls, 1)
    regret = trial.per_task("regret").sum(dim=1)
    return num_pulls * num_arms / (num_arms + 1) - regret.mean().item(), regret.std().item() / math.sqrt(4000)


@pytest.mark.parametrize(
    ("num_pulls", "name", "constants", "mean", "error"),
    [
        (10, "random", {}, 5.0, 0.0),  # exact
        (10, "gittins", {}, 6.660, 0.0),  # the Bayes-optimal value, exact
        # The others are from an independent simulation of the same rules.
        (10, "thompson", {}, 5.83, 0.01),
        (10, "greedy", {}, 6.57, 0.01),
        (10, "epsilon_greedy", {"epsilon": 0.0}, 6.57, 0.01),
        (10, "ucb1", {"c": 0.1}, 6.672, 0.009),
        (10, "ots", {"samples": 20}, 6.5, 0.05),  # Duan et al. 2016, table 1, 1000 tasks
        (100, "gittins", {}, 78.69, 0.03),
        (100, "thompson", {}, 75.08, 0.03),
        (100, "greedy", {}, 75.08, 0.06),
        (100, "ucb1", {"c": 0.2}, 78.42, 0.04),
    ],
)
def test_returns_on_five_bernoulli_arms(num_pulls, name, constants, mean, error) -> None:
    ours, our_error = earned(5, num_pulls, name, constants)
    assert abs(ours - mean) < 3.5 * math.hypot(error, our_error)


def regret_per_doubling(name: str) -> list[float]:
    """Mean regret of bandits with means 0.3 and 0.7 over pulls 101 … 200, 201 … 400, 401 … 800."""
    tasks = TensorTasks({"means": torch.tensor([[0.3, 0.7]]).repeat(2000, 1)})
    agent = bernoulli_references(2, 800)[name].build()
    regret = RolloutWorker(BernoulliBandits(2)).run(agent, tasks, 800, 2).per_task("regret").mean(dim=0)
    return [regret[n : 2 * n].sum().item() for n in (100, 200, 400)]


def test_thompson_regret_grows_like_log_n_and_epsilon_greedy_like_n() -> None:
    # 0.534, 0.520, 0.542 in an independent simulation; each doubling of n adds the same to C ln n.
    assert regret_per_doubling("thompson") == pytest.approx([0.53] * 3, rel=0.2)
    # Late, ε/2 of the pulls go to the worse arm: 0.1 · 0.5 · 0.4 each.
    assert regret_per_doubling("epsilon_greedy") == pytest.approx([2, 4, 8], rel=0.1)


def test_gaussian_references_earn_in_the_order_of_their_merit() -> None:
    distribution = GaussianBandits(5)
    tasks = sample_tasks(distribution, 2000, 0, "test")
    mean = {}
    for name, reference in gaussian_references(5, 50).items():
        trial = RolloutWorker(distribution).run(reference.build(), tasks, 50, 0)
        mean[name] = trial.per_task("expected_reward").mean().item()
    assert abs(mean["random"]) < 0.05
    optimum = distribution.optimal_return(tasks).mean().item()
    assert 0.7 * optimum < mean["thompson"] < min(mean["ots"], mean["ucb1"]) < optimum


@pytest.mark.parametrize("name", ["random", "epsilon_greedy", "thompson", "ots"])
def test_all_draws_come_from_the_carried_generator(name: str) -> None:
    agent = bernoulli_references(3, 10)[name].build()
    first, again, other = (
        choose(agent, statistics(PULLS * 50, WINS * 50, seed)).action for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# The tables of references


@pytest.mark.parametrize("references", [bernoulli_references, gaussian_references])
def test_every_constant_has_a_default_and_every_grid_value_builds(references) -> None:
    built = references(3, 10)
    assert [name for name in built if name != "gittins"] == NAMES
    assert ("gittins" in built) == (references is bernoulli_references)
    for reference in built.values():
        assert reference.build().phase.episodes == 1
        assert reference.description
        for constant, values in reference.grid.items():
            agents = [reference.build(**{constant: value}) for value in values]
            assert [agent.rule.keywords[constant] for agent in agents] == list(values)


@pytest.mark.parametrize(
    ("name", "constants", "message"),
    [
        ("epsilon_greedy", {"epsilon": 1.5}, r"expected epsilon in \[0, 1\], got 1.5"),
        ("epsilon_greedy", {"epsilon": math.nan}, r"expected epsilon in \[0, 1\], got nan"),
        ("ucb1", {"c": -0.1}, "expected c >= 0, got -0.1"),
        ("ots", {"samples": 0}, "expected samples >= 1, got 0"),
    ],
)
def test_bad_constants_are_refused(name: str, constants: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bernoulli_references(3, 10)[name].build(**constants)


def test_gittins_refuses_a_trial_longer_than_its_table() -> None:
    distribution = BernoulliBandits(2)
    tasks = sample_tasks(distribution, 3, 0, "test")
    agent = bernoulli_references(2, 5)["gittins"].build()
    with pytest.raises(ValueError, match="trial of num_pulls=5 pulls at most, got pull 6"):
        RolloutWorker(distribution).run(agent, tasks, 6, 0)


@pytest.mark.parametrize("name", ["greedy", "thompson", "ucb1", "ots"])
def test_gaussian_references_know_where_the_means_lie(name: str) -> None:
    regrets = []
    for mean in (0.0, 3.0):
        family = GaussianBandits(num_arms=4, mean=mean)
        tasks = sample_tasks(family, 200, 0, "test")
        agent = gaussian_references(4, 10, mean)[name].build()
        regrets.append(RolloutWorker(family).run(agent, tasks, 10, 0).per_task("regret"))
    apart = (regrets[0] - regrets[1]).abs() > 1e-4  # a shift moves no choice, but for rounding
    assert apart.float().mean() < 0.01
