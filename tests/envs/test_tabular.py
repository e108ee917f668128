"""Random tabular MDPs: their law, their optimum, and what a walk through them says."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from pydantic import ValidationError
from stable_baselines3.common.env_checker import check_env as check_sb3
from torch import Tensor

from rl2meta.dynamic_programming import evaluate_policy, solve
from rl2meta.envs import FAMILIES
from rl2meta.envs.checking import check_distribution
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.parts import at_most
from rl2meta.randomness import generator
from rl2meta.tasks import TensorTasks, sample_tasks

CPU = torch.device("cpu")
CONTINUOUS = {"rl2meta/PointNavigation-v0", "rl2meta/Sinusoid-v0", "rl2meta/Quadratic-v0"}
"""Families whose actions are clipped, not refused."""
SMALL = TabularMDPs(num_states=4, num_actions=3, horizon=5)


def walk(
    family: TabularMDPs, tasks: TensorTasks, actions: Tensor, seed: int = 0
) -> tuple[list[Tensor], list[tuple[Any, ...]]]:
    """Return the observations before each step, and what each step gave."""
    envs = family.make_envs(len(tasks), CPU)
    observation, _ = envs.reset(seed=seed, options={"tasks": tasks})
    seen, steps = [], []
    for action in actions:
        seen.append(observation)
        steps.append(envs.step(action))
        observation = steps[-1][0]
    return seen, steps


def copies(family: TabularMDPs, num_copies: int) -> TensorTasks:
    """One MDP, many times."""
    return sample_tasks(family, 1, 0, "test")[torch.zeros(num_copies, dtype=torch.int64)]  # type: ignore[return-value]


@pytest.mark.parametrize(
    "family",
    [
        TabularMDPs(),
        TabularMDPs(num_states=3, num_actions=2, horizon=1),
        TabularMDPs(reward_mean=0.0, concentration=0.05),
        TabularMDPs(concentration=30.0, noise=0.0),
    ],
    ids=str,
)
def test_family_keeps_the_contract(family: TabularMDPs) -> None:
    check_distribution(family)


def test_gymnasium_and_sb3_accept_the_single_environment() -> None:
    env = gym.make("rl2meta/TabularMDP-v0", num_states=4, horizon=3)
    check_env(env.unwrapped, skip_render_check=True)
    check_sb3(env.unwrapped, skip_render_check=True)  # type: ignore[arg-type]
    batch = gym.make_vec("rl2meta/TabularMDP-v0", num_envs=7, num_states=4)
    observation, _ = batch.reset(seed=0)
    assert observation.tolist() == [0] * 7


@pytest.mark.parametrize(
    "fault",
    [
        {"num_states": 1},
        {"num_actions": 1},
        {"horizon": 0},
        {"noise": -1.0},
        {"concentration": 0.0},
        {"reward_mean": float("nan")},
        {"num_states": 10.0},
        {"states": 3},
    ],
    ids=str,
)
def test_nonsense_is_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TabularMDPs(**fault)


@pytest.mark.parametrize("concentration", [0.1, 1.0, 5.0])
def test_law_of_the_tasks(concentration: float) -> None:
    family = TabularMDPs(6, 4, 3, reward_mean=-2.0, reward_deviation=0.5, concentration=concentration)
    tasks = sample_tasks(family, 4000, 0, "train")
    rewards, transitions = tasks.parameters["reward_means"], tasks.parameters["transitions"]  # type: ignore[attr-defined]
    assert rewards.mean() == pytest.approx(-2, abs=4 * 0.5 / rewards.numel() ** 0.5)
    assert rewards.std() == pytest.approx(0.5, rel=0.02)
    torch.testing.assert_close(transitions.sum(dim=-1), torch.ones(4000, 6, 4))
    # Var of Dirichlet(α, …, α) in S dimensions: (1/S)(1 − 1/S) / (S α + 1).
    assert transitions.var() == pytest.approx(1 / 6 * 5 / 6 / (6 * concentration + 1), rel=0.02)
    neighbours = np.corrcoef(transitions[:, 0, 0, 0], transitions[:, 0, 1, 0])[0, 1]
    assert abs(neighbours) < 4 / 4000**0.5


def test_tiny_concentration_gives_probabilities_still() -> None:
    tasks = sample_tasks(TabularMDPs(concentration=1e-3), 50, 0, "train")
    transitions = tasks.parameters["transitions"]  # type: ignore[attr-defined]
    assert transitions.isfinite().all()
    torch.testing.assert_close(transitions.sum(dim=-1), torch.ones(50, 10, 5))


def test_frequencies_are_those_of_the_task() -> None:
    tasks = copies(SMALL, 60_000)
    means, transitions = (tasks.parameters[name][0] for name in ("reward_means", "transitions"))
    seen, steps = walk(SMALL, tasks, torch.tensor([1, 2]).unsqueeze(1).expand(2, 60_000))
    assert (seen[0] == 0).all()
    reward = steps[0][1]
    assert reward.mean() == pytest.approx(float(means[0, 1]), abs=4 / 60_000**0.5)
    assert reward.std() == pytest.approx(1, rel=0.02)
    counts = torch.bincount(seen[1], minlength=4) / 60_000
    torch.testing.assert_close(counts, transitions[0, 1], atol=4 * 0.5 / 60_000**0.5, rtol=0)
    for state in range(4):
        at = steps[1][0][seen[1] == state]
        margin = 4 * 0.5 / len(at) ** 0.5
        torch.testing.assert_close(
            torch.bincount(at, minlength=4) / len(at), transitions[state, 2], atol=margin, rtol=0
        )
        assert torch.equal(steps[1][4]["expected_reward"][seen[1] == state], means[state, 2].expand(len(at)))


def test_every_visit_draws_its_noise_anew_and_none_is_none() -> None:
    noisy, still = SMALL, TabularMDPs(4, 3, 5, noise=0.0)
    actions = torch.zeros(20, 50, dtype=torch.int64)
    for family, silent in ((noisy, False), (still, True)):
        _, steps = walk(family, sample_tasks(family, 50, 1, "test"), actions)  # type: ignore[arg-type]
        apart = torch.stack([reward - info["expected_reward"] for _, reward, _, _, info in steps])
        assert bool((apart == 0).all()) is silent
        assert silent or apart.unique().numel() > 990


def test_episodes_end_by_termination_at_the_horizon_and_restart_in_state_0() -> None:
    tasks = sample_tasks(SMALL, 30, 0, "test")
    _, steps = walk(SMALL, tasks, torch.ones(15, 30, dtype=torch.int64))  # type: ignore[arg-type]
    for t, (observation, _, terminated, truncated, info) in enumerate(steps, start=1):
        assert terminated.tolist() == [t % 5 == 0] * 30
        assert not truncated.any()
        assert (t % 5 != 0) or (observation == 0).all()
        assert info["final_obs"].max() < 4


def test_mean_regret_of_an_episode_is_what_policy_evaluation_says() -> None:
    tasks = copies(SMALL, 40_000)
    one = tasks[:1]
    means, transitions = one.parameters["reward_means"], one.parameters["transitions"]
    policy = torch.rand(1, 5, 4, 3, generator=generator(0)).softmax(dim=-1)
    optimum = solve(means, transitions, 5).value[0, 0, 0]
    value = evaluate_policy(means, transitions, policy)[0, 0, 0]
    envs = SMALL.make_envs(40_000, CPU)
    state, _ = envs.reset(seed=1, options={"tasks": tasks})
    draws, regret, returns = generator(2), torch.zeros(40_000), torch.zeros(40_000)
    for t in range(5):
        action = torch.multinomial(policy[0, t, state], 1, generator=draws).squeeze(1)
        state, reward, _, _, info = envs.step(action)
        regret, returns = regret + info["regret"], returns + reward
        assert (info["regret"] >= 0).all()
    assert optimum > value + 0.5
    for sample, expected in ((regret, optimum - value), (returns, value)):
        assert sample.mean() == pytest.approx(float(expected), abs=4 * float(sample.std()) / 200)


def test_regrets_are_what_one_other_action_loses_before_the_best_ones() -> None:
    """Policy evaluation takes no maximum: of the best policy, and of the same with another first action."""
    tasks = sample_tasks(SMALL, 50, 0, "test")
    means, transitions = tasks.parameters["reward_means"], tasks.parameters["transitions"]  # type: ignore[attr-defined]
    best = torch.nn.functional.one_hot(solve(means, transitions, 5).action_value.argmax(dim=-1), 3).float()
    envs = SMALL.make_envs(50, CPU)
    envs.reset(seed=0, options={"tasks": tasks})
    regrets = envs.step(torch.zeros(50, dtype=torch.int64))[-1]["regrets"]
    optimum = evaluate_policy(means, transitions, best)[:, 0, 0]
    for action in range(3):
        other = best.clone()
        other[:, 0, 0] = torch.eye(3)[action]
        lost = optimum - evaluate_policy(means, transitions, other)[:, 0, 0]
        torch.testing.assert_close(regrets[:, action], lost, atol=1e-5, rtol=1e-5)


def test_the_greedy_policy_has_no_regret() -> None:
    tasks = sample_tasks(SMALL, 200, 0, "test")
    means, transitions = tasks.parameters["reward_means"], tasks.parameters["transitions"]  # type: ignore[attr-defined]
    best = solve(means, transitions, 5).action_value.argmax(dim=-1)
    envs, rows = SMALL.make_envs(200, CPU), torch.arange(200)
    state, _ = envs.reset(seed=0, options={"tasks": tasks})
    for t in range(10):
        state, *_, info = envs.step(best[rows, t % 5, state])
        assert (info["regret"] == 0).all()


def test_mean_optimum_is_the_one_computed_elsewhere() -> None:
    optimum = TabularMDPs().optimal_return(sample_tasks(TabularMDPs(), 20_000, 0, "test"))
    assert optimum.mean() == pytest.approx(21.86, abs=4 * float(optimum.std()) / 20_000**0.5)


def test_optimum_does_not_depend_on_how_many_are_solved_at_once() -> None:
    tasks = sample_tasks(SMALL, 100, 0, "test")
    whole = SMALL.optimal_return(tasks)
    with at_most(7 * 8 * 60):
        assert len(list(SMALL.optima(tasks))) == 15  # of 7 tasks, but for the last
        torch.testing.assert_close(SMALL.optimal_return(tasks), whole)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in CONTINUOUS])
@pytest.mark.parametrize("action", [-1, 99])
def test_actions_that_there_are_not_are_refused(family: str, action: int) -> None:
    envs = gym.make_vec(family, num_envs=3)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=rf"expected actions in Discrete\(\d+\), got one of {action}"):
        envs.step(torch.tensor([0, action, 0]))
    with pytest.raises(ValueError, match="expected num_envs >= 1, got 0"):
        gym.make_vec(family, num_envs=0)


@pytest.mark.parametrize(
    ("family", "shape"), [("rl2meta/PointNavigation-v0", (2,)), ("rl2meta/TabularMDP-v0", (1,))]
)
def test_actions_that_would_be_broadcast_are_refused(family: str, shape: tuple[int, ...]) -> None:
    envs = gym.make_vec(family, num_envs=3)
    envs.reset(seed=0)
    actions = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expected actions of shape \(3.*\), one per environment, got \("):
        envs.step(actions)
