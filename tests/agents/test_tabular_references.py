import itertools
import math
from functools import partial

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import Tensor

from rl2meta.agents.references.planning import (
    Posterior,
    beb,
    greedy,
    opsrl,
    optimistic_expectation,
    psrl,
    sample_dirichlet,
    ucrl2,
)
from rl2meta.agents.references.tabular import Counts, Prior, TabularAgent, tabular_references
from rl2meta.dynamic_programming import evaluate_policy, solve
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.evaluation import evaluate
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.trial import TimeStep, Trajectory

BAYESIAN = ["greedy", "epsilon_greedy", "psrl", "opsrl", "beb"]
PLANNERS = {
    "greedy": greedy,
    "psrl": psrl,
    "opsrl": partial(opsrl, samples=3),
    "beb": partial(beb, scaling=1e-3),
    "ucrl2": partial(ucrl2, scaling=0.1),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mdps(num: int, num_states: int, num_actions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rewards [B, S, A] and transitions [B, S, A, S], float64."""
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(num, num_states, num_actions))
    transitions = rng.dirichlet(np.full(num_states, 0.5), size=rewards.shape)
    return torch.from_numpy(rewards), torch.from_numpy(transitions)


def posterior(num: int = 4, num_states: int = 4, num_actions: int = 3, visits: int = 20) -> Posterior:
    """What is believed of ``num`` MDPs after some visits of each pair."""
    draws = seeded(3)
    precision = 1 + torch.randint(visits, (num, num_states, num_actions), generator=draws).float()
    weights = 1 + torch.randint(visits, (*precision.shape, num_states), generator=draws).float()
    return Posterior(torch.randn(precision.shape, generator=draws), precision, weights, 1.0, 2, draws)


def step_in(state: Tensor, num_actions: int) -> TimeStep:
    nothing = torch.zeros(len(state))
    return TimeStep(state, torch.zeros(len(state), num_actions), nothing, nothing.bool())


def trajectory(state: Tensor, action: Tensor, reward: Tensor, last: Tensor, mask: Tensor) -> Trajectory:
    inputs = TimeStep(state, torch.zeros(*action.shape, 2), torch.zeros_like(reward), last)
    return Trajectory(inputs, action, reward, last, mask, {}, {})


# Dynamic programming


def value_by_hand(rewards: np.ndarray, transitions: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """V^π_0 [S] of one MDP for actions policy[t, s]."""
    value = np.zeros(len(rewards))
    for actions in policy[::-1]:
        value = np.array([rewards[s, a] + sum(transitions[s, a] * value) for s, a in enumerate(actions)])
    return value


@pytest.mark.parametrize("leak", [0.0, 0.3])  # the probability that a step ends the episode
def test_the_optimum_is_that_of_the_best_of_all_policies(leak: float) -> None:
    rewards, transitions = mdps(3, 3, 2)
    transitions = transitions * (1 - leak)
    optimum = solve(rewards, transitions, 2)
    policies = np.array(list(itertools.product(range(2), repeat=6))).reshape(-1, 2, 3)
    for r, p, value in zip(rewards.numpy(), transitions.numpy(), optimum.value.numpy(), strict=True):
        values = np.array([value_by_hand(r, p, policy) for policy in policies])
        np.testing.assert_allclose(value[0], values.max(axis=0))
        np.testing.assert_allclose(value[1], r.max(axis=1))


def test_action_values_obey_bellman_and_their_greedy_policy_earns_the_optimum() -> None:
    rewards, transitions = mdps(5, 4, 3)
    value, action_value = solve(rewards, transitions, 6)
    torch.testing.assert_close(action_value[:, 5], rewards)
    next_value = torch.einsum("bsan,btn->btsa", transitions, value[:, 1:])
    torch.testing.assert_close(action_value[:, :5], rewards.unsqueeze(1) + next_value)
    policy = torch.nn.functional.one_hot(action_value.argmax(dim=-1), 3).double()
    torch.testing.assert_close(evaluate_policy(rewards, transitions, policy), value)


def test_the_value_of_a_policy_by_hand() -> None:
    rewards, transitions = mdps(1, 3, 2)
    actions = np.array([[0, 1, 1], [1, 0, 1], [0, 0, 1]])
    policy = torch.nn.functional.one_hot(torch.from_numpy(actions), 2).double().unsqueeze(0)
    ours = evaluate_policy(rewards, transitions, policy)[0, 0]
    np.testing.assert_allclose(ours, value_by_hand(rewards[0].numpy(), transitions[0].numpy(), actions))


# What is known


def test_adapt_counts_what_was_seen() -> None:
    agent = TabularAgent(Prior(3, 2, 0.0, 1.0, 1.0, 1.0), 4, greedy)
    state = torch.tensor([[0, 0], [2, 1], [1, 1], [1, 0]])  # [T, B]
    action = torch.tensor([[1, 0], [0, 0], [0, 1], [1, 1]])
    reward = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    last = torch.tensor([[False, False], [False, True], [False, False], [True, False]])
    mask = torch.tensor([[True, True], [True, True], [True, True], [True, False]])
    start = agent.begin(2, seeded())
    seen = agent.adapt(start, trajectory(state, action, reward, last, mask)).counts
    assert seen.visits.tolist() == [[[0, 1], [1, 1], [1, 0]], [[1, 0], [1, 1], [0, 0]]]
    assert seen.totals.tolist() == [[[0, 1], [5, 7], [3, 0]], [[2, 0], [4, 6], [0, 0]]]
    # Of task 0: 0, 1 -> 2; 2, 0 -> 1; 1, 0 -> 1; the last step's successor was not seen.
    # Of task 1: 0, 0 -> 1; then an episode ends, and the step after its next is padding.
    assert seen.transitions.nonzero().tolist() == [[0, 0, 1, 2], [0, 1, 0, 1], [0, 2, 0, 1], [1, 0, 0, 1]]
    assert seen.transitions.sum() == 4
    assert not any(count.any() for count in start.counts)  # the old carry is left as it was
    again = agent.adapt(
        agent.adapt(start, trajectory(state, action, reward, last, mask)),
        trajectory(state, action, reward, last, mask),
    )
    assert again.episode == 2 and again.step == 0
    for once, twice in zip(seen, again.counts, strict=True):
        torch.testing.assert_close(2 * once, twice)


def test_the_posterior_of_a_mean_reward_and_of_a_transition() -> None:
    prior = Prior(2, 1, mean=3.0, precision=1 / 4, noise_precision=1 / 9, concentration=0.5)
    visits, totals = torch.tensor([[[0.0], [5.0]]]), torch.tensor([[[0.0], [20.0]]])
    seen = prior.posterior(Counts(visits, totals, torch.tensor([[[[0.0, 0.0]], [[3.0, 1.0]]]])), 0, seeded())
    assert seen.mean[0, 0, 0] == 3 and seen.precision[0, 0, 0] == 1 / 4
    # The precision-weighted mean of the prior's 3 and the data's 20 / 5, of variances 4 and 9 / 5.
    assert seen.mean[0, 1, 0].item() == pytest.approx((3 / 4 + 4 / 1.8) / (1 / 4 + 1 / 1.8))
    assert seen.precision[0, 1, 0].item() == pytest.approx(1 / 4 + 1 / 1.8)
    torch.testing.assert_close(seen.transitions()[0, :, 0], torch.tensor([[0.5, 0.5], [3.5 / 5, 1.5 / 5]]))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 3.0, 40.0), (0.5, 1.5, 4.0), (0.01, 0.02, 1.0)])
def test_dirichlet_draws(weights: tuple[float, ...]) -> None:
    draws = sample_dirichlet(torch.tensor(weights).expand(20_000, 3), seeded(1), min(weights))
    torch.testing.assert_close(draws.sum(dim=1), torch.ones(20_000))
    for i, weight in enumerate(weights):
        if min(weights) >= 0.5:  # floating point has no room for the law of smaller ones, only for the mean
            law = scipy.stats.beta(weight, sum(weights) - weight)
            assert scipy.stats.kstest(draws[:, i].numpy(), law.cdf).pvalue > 1e-3
    mean = np.array(weights) / sum(weights)
    error = np.sqrt(mean * (1 - mean) / (sum(weights) + 1) / 20_000)
    assert (np.abs(draws.mean(dim=0).numpy() - mean) < 4 * error).all()


# The planners


def test_greedy_solves_the_mean_mdp() -> None:
    seen = posterior()
    mean = seen.weights / seen.weights.sum(dim=-1, keepdim=True)
    assert torch.equal(greedy(seen, 5), solve(seen.mean, mean, 5).action_value)


def test_psrl_solves_draws_of_the_posterior() -> None:
    one = Posterior(*(torch.tensor(x) for x in ([[[2.0]]], [[[4.0]]], [[[[3.0]]]])), 1.0, 0, seeded())
    many = one._replace(
        mean=one.mean.expand(5000, 1, 1),
        precision=one.precision.expand(5000, 1, 1),
        weights=one.weights.expand(5000, 1, 1, 1),
    )
    plan = psrl(many, 3)[..., 0, 0]  # one state, one action: rewards of the same draw add up
    assert scipy.stats.kstest(plan[:, 2].numpy(), scipy.stats.norm(2, 1 / 2).cdf).pvalue > 1e-3
    torch.testing.assert_close(plan, plan[:, 2:] * torch.tensor([3.0, 2.0, 1.0]))
    seen = posterior()
    certain = seen._replace(precision=seen.precision * 1e10, weights=seen.weights * 1e10)
    torch.testing.assert_close(psrl(certain, 5), greedy(certain, 5), atol=1e-2, rtol=0)


def test_psrl_draws_transitions_too() -> None:
    """One step from a state to a good or a bad one: Q_0 is the draw of P(good), of law Beta(3, 2)."""
    mean = torch.tensor([[[0.0], [1.0]]]).expand(5000, 2, 1)
    weights = torch.tensor([2.0, 3.0]).expand(5000, 2, 1, 2)
    seen = Posterior(mean, torch.full_like(mean, 1e12), weights, 1.0, 0, seeded())
    assert scipy.stats.kstest(psrl(seen, 2)[:, 0, 0, 0].numpy(), scipy.stats.beta(3, 2).cdf).pvalue > 1e-3


def test_opsrl_is_psrl_with_one_sample_and_more_optimistic_with_more() -> None:
    def plan(planner) -> Tensor:
        return planner(posterior()._replace(generator=seeded(7)), 5)

    of = {samples: plan(partial(opsrl, samples=samples)) for samples in (1, 2, 10)}
    assert torch.equal(of[1], plan(psrl))
    assert (of[2] >= of[1]).all() and (of[10] >= of[2]).all()  # the first draws are the same
    assert of[10].mean() > of[2].mean() + 0.1 > of[1].mean() + 0.2


def test_beb_by_hand() -> None:
    # One state; action 0 was tried twice with rewards of sum 3, action 1 never.
    prior = Prior(1, 2, mean=0.0, precision=1.0, noise_precision=1.0, concentration=1.0)
    visits, totals = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[3.0, 0.0]]])
    seen = prior.posterior(Counts(visits, totals, visits.unsqueeze(-1)), 1, seeded())
    plan = beb(seen, horizon=3, scaling=0.1)[0, :, 0]
    first, second = 3 / 3 + 1 / 4, 0 + 1 / 2  # with 1 / (n + 2)
    beta_h = 2 * 3**2 * 0.1 * 3
    of_first, of_second = beta_h / (1 + 1 + 2), beta_h / (1 + 1)  # 1 + S α + n
    third = first  # V_2
    middle = max(first + of_first, second + of_second) + third  # V_1
    expected = [
        [first + 2 * of_first + middle, second + 2 * of_second + middle],
        [first + of_first + third, second + of_second + third],
        [first, second],
    ]
    np.testing.assert_allclose(plan.numpy(), expected, rtol=1e-5)


def best_in_ball(probability: np.ndarray, radius: float, value: np.ndarray) -> float:
    """max p'·v over distributions p' with ‖p' − p‖₁ ≤ radius, as a linear program in (p', |p' − p|)."""
    size = len(value)
    eye, one, zero = np.eye(size), np.ones((1, size)), np.zeros((1, size))
    found = scipy.optimize.linprog(
        c=np.concatenate([-value, np.zeros(size)]),
        A_ub=np.block([[eye, -eye], [-eye, -eye], [zero, one]]),
        b_ub=np.concatenate([probability, -probability, [radius]]),
        A_eq=np.block([[one, zero]]),
        b_eq=[1.0],
    )
    return -float(found.fun)


def test_the_best_transitions_in_a_ball_are_those_of_a_linear_program() -> None:
    _, transitions = mdps(4, 4, 3)
    transitions[0] = torch.eye(4, dtype=torch.float64)[torch.arange(12) % 4].view(4, 3, 4)
    radius = torch.tensor([0.0, 0.3, 1.0, 1.7, 2.5], dtype=torch.float64)[torch.arange(48) % 5].view(4, 4, 3)
    value = torch.randn(4, 4, generator=seeded(), dtype=torch.float64)
    value[1, :2] = value[1].max()  # two best ones
    before = transitions.clone()
    ours = optimistic_expectation(transitions, radius)(value)
    for b, s, a in itertools.product(range(4), range(4), range(3)):
        best = best_in_ball(transitions[b, s, a].numpy(), radius[b, s, a].item(), value[b].numpy())
        assert ours[b, s, a].item() == pytest.approx(best, abs=1e-7)
    assert torch.equal(transitions, before)


def test_ucrl2_is_extended_value_iteration_at_every_stage() -> None:
    seen = posterior(num=1, num_states=3, num_actions=2, visits=8)  # episode 2
    log = math.log(2 * 3 * 2 * 3 / 0.05)
    weights = seen.weights[0].double().numpy()
    slack = 0.2 * np.sqrt(4 * log / seen.precision[0].numpy())
    radius = 0.2 * np.sqrt(4 * 3 * log / weights.sum(axis=-1))
    value = np.zeros(3)
    for stage in ucrl2(seen, 4, scaling=0.2)[0].flip(0):
        best = [
            [best_in_ball(weights[s, a] / weights[s, a].sum(), radius[s, a], value) for a in range(2)]
            for s in range(3)
        ]
        action_value = seen.mean[0].numpy() + slack + np.array(best)
        np.testing.assert_allclose(stage.numpy(), action_value, rtol=1e-5)
        value = action_value.max(axis=1)


def test_ucrl2_trusts_what_it_has_seen_often_and_less_so_in_later_episodes() -> None:
    seen = posterior()
    often = seen._replace(precision=100 * seen.precision, weights=100 * seen.weights)
    plan = partial(ucrl2, horizon=4, scaling=0.1)
    assert (plan(often) < plan(seen)).all()
    assert (plan(seen._replace(episode=30)) > plan(seen)).all()
    torch.testing.assert_close(plan(seen, scaling=0.0), greedy(seen, 4))


# The agents


def test_names_and_descriptions() -> None:
    names = ["random", *BAYESIAN, "ucrl2"]
    references = tabular_references(3, 2, 4)
    assert list(references) == names + [f"{name}_mean0" for name in BAYESIAN]
    assert list(tabular_references(3, 2, 4, reward_mean=0.0)) == names
    assert len({reference.description for reference in references.values()}) == len(references)
    for reference in references.values():
        for key, values in reference.grid.items():
            assert all(isinstance(reference.build(**{key: value}), TabularAgent) for value in values)


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("epsilon_greedy", {"epsilon": -0.1}),
        ("epsilon_greedy", {"epsilon": 1.1}),
        ("opsrl", {"samples": 0}),
        ("beb", {"scaling": -1.0}),
        ("ucrl2", {"scaling": -1.0}),
    ],
)
def test_bad_constants_are_refused(name: str, constants: dict) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(constants))}"):
        tabular_references(3, 2, 4)[name].build(**constants)


def test_ties_are_broken_evenly_and_a_planned_best_action_is_taken() -> None:
    agent = tabular_references(10, 5, 10)["greedy"].build()
    carry = agent.begin(4000, seeded())
    state = torch.arange(4000) % 10
    first = agent.act(carry, step_in(state, 5))[0].action
    assert scipy.stats.chisquare(torch.bincount(first, minlength=5).numpy()).pvalue > 1e-3
    plan = torch.randn(carry.plan.shape, generator=seeded())
    carry = carry._replace(plan=plan)
    for t in range(3):
        choice, carry = agent.act(carry, step_in(state, 5))
        assert torch.equal(choice.action, plan[torch.arange(4000), t, state].argmax(dim=1))
        assert torch.equal(choice.mode, choice.action) and not choice.notes


@pytest.mark.parametrize(("name", "epsilon"), [("random", 1.0), ("epsilon_greedy", 0.3)])
def test_exploration_is_left_out_of_the_mode(name: str, epsilon: float) -> None:
    build = tabular_references(2, 4, 3)[name].build
    agent = build() if name == "random" else build(epsilon=epsilon)
    carry = agent.begin(8000, seeded())
    plan = torch.tensor([1.0, 3.0, 2.0, 0.0]).expand_as(carry.plan)
    choice, _ = agent.act(carry._replace(plan=plan), step_in(torch.zeros(8000, dtype=torch.int64), 4))
    assert (choice.mode == 1).all()
    others = 8000 * epsilon / 4
    expected = [others, 8000 - 3 * others, others, others]
    assert scipy.stats.chisquare(torch.bincount(choice.action).numpy(), expected).pvalue > 1e-3


def experienced(agent: TabularAgent, num_tasks: int, seed: int = 0):
    """A carry after one made-up episode."""
    draws, shape = seeded(seed), (agent.horizon, num_tasks)
    num_states, num_actions = agent.prior.num_states, agent.prior.num_actions
    last = torch.zeros(shape, dtype=torch.bool)
    last[-1] = True
    lived = trajectory(
        torch.randint(num_states, shape, generator=draws),
        torch.randint(num_actions, shape, generator=draws),
        torch.randn(shape, generator=draws),
        last,
        torch.ones_like(last),
    )
    return agent.begin(num_tasks, seeded(seed + 1)), lived


@pytest.mark.parametrize("name", PLANNERS)
def test_a_carry_is_left_as_it_was(name: str) -> None:
    agent = TabularAgent(Prior(4, 3, 1.0, 1.0, 1.0, 1.0), 5, PLANNERS[name], epsilon=0.5)
    before, lived = experienced(agent, 6)
    carry = agent.adapt(before, lived)
    copies = [tensor.clone() for tensor in (*carry.counts, carry.plan)]
    _, acted = agent.act(carry, step_in(torch.zeros(6, dtype=torch.int64), 3))
    agent.adapt(acted, lived)
    assert carry.step == 0 and acted.step == 1 and carry.episode == acted.episode == 1
    for tensor, copy in zip((*carry.counts, carry.plan), copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("name", ["greedy", "beb", "ucrl2"])
def test_an_mdp_is_planned_the_same_alone_and_in_a_batch(name: str) -> None:
    agent = TabularAgent(Prior(10, 5, 1.0, 1.0, 1.0, 1.0), 10, PLANNERS[name])
    start, lived = experienced(agent, 600)  # more than are planned at once
    together = agent.adapt(start, lived)
    for i in (0, 300, 599):
        counts = Counts(*(count[i : i + 1] for count in together.counts))
        alone = agent.planner(agent.prior.posterior(counts, 1, seeded()), 10)
        torch.testing.assert_close(together.plan[i : i + 1], alone)


LAWS = [
    (1.0, 0.0, 1.0, 1.0),
    (1.0, 1.0, 0.0, 1.0),
    (2.0, 0.0, 0.0, 1e-3),
    (-1e3, 1e6, 1e6, 1e6),
    (0.0, 1.0, 1.0, 0.1),
]


@pytest.mark.parametrize("law", LAWS)
def test_every_law_of_the_family_has_plans(law: tuple[float, ...]) -> None:
    mean, deviation, noise, concentration = law
    distribution = TabularMDPs(4, 3, 3, mean, deviation, noise, concentration)
    tasks, worker = sample_tasks(distribution, 20, 0, "test"), RolloutWorker(distribution)
    references = tabular_references(
        4, 3, 3, reward_mean=mean, reward_deviation=deviation, noise=noise, concentration=concentration
    )
    for name, reference in references.items():
        agent = reference.build()
        carry = agent.begin(20, seeded())
        for phase in worker.run(agent, tasks, 3, 0).phases:
            assert phase.action.max() < 3
            carry = agent.adapt(carry, phase)
            assert carry.plan.isfinite().all(), name


def test_known_rewards_are_not_explored() -> None:
    """With d = 0 every action is worth m, and the posterior says so whatever noise was seen."""
    agent = tabular_references(4, 3, 3, reward_mean=2.0, reward_deviation=0.0)["psrl"].build()
    plan = agent.adapt(*experienced(agent, 50)).plan
    torch.testing.assert_close(plan[:, 0], torch.full((50, 4, 3), 6.0), atol=1e-4, rtol=0)


# What they earn


@pytest.fixture(scope="module")
def returns():
    distribution = TabularMDPs()
    tasks, worker = sample_tasks(distribution, 1000, 0, "test"), RolloutWorker(distribution)
    references = tabular_references(10, 5, 10)

    def of(name: str, **constants: float) -> np.ndarray:
        return evaluate(references[name].build(**constants), worker, tasks, 10, 0).returns()

    return of


@pytest.mark.parametrize(
    ("name", "constants", "mean"),
    [  # from an independent simulation of the same algorithms, 1000 MDPs, s.e. 0.9
        ("random", {}, 99.8),
        ("greedy", {}, 155.3),
        ("psrl", {}, 134.2),
        ("beb", {"scaling": 5e-4}, 157.2),
        ("greedy_mean0", {}, 138.3),
        ("psrl_mean0", {}, 137.6),
        # Duan et al. 2016, table 2, tuned, 1000 MDPs
        ("opsrl_mean0", {"samples": 10}, 144.1),
        ("beb_mean0", {"scaling": 0.002}, 150.2),
        ("ucrl2", {"scaling": 0.4}, 146.6),
    ],
)
def test_returns_of_ten_episodes(name: str, constants: dict, mean: float, returns) -> None:
    ours = returns(name, **constants)
    assert abs(ours.mean() - mean) < 3 * math.hypot(0.9, ours.std() / math.sqrt(1000))


def test_two_evaluations_with_one_seed_are_equal(returns) -> None:
    np.testing.assert_array_equal(returns("psrl"), returns("psrl"))


def test_epsilon_greedy_without_epsilon_is_greedy(returns) -> None:
    np.testing.assert_array_equal(returns("epsilon_greedy", epsilon=0.0), returns("greedy"))
