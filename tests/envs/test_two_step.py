"""The two-step task: where choices lead, what is paid there, when the good side switches."""

import json
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from pydantic import ValidationError

from rl2meta.envs.batched import TaskEnv
from rl2meta.envs.checking import check_distribution
from rl2meta.envs.two_step import MAX_SWITCHES, TwoStep
from rl2meta.tasks import TensorTasks, sample_tasks

CPU = torch.device("cpu")
FAMILY = TwoStep(common=0.8, high=0.85, low=0.2)


def tasks_of(side: int, switches: list[int], num_tasks: int) -> TensorTasks:
    schedule = torch.full((num_tasks, MAX_SWITCHES), 2**40)
    schedule[:, : len(switches)] = torch.tensor(switches)
    return TensorTasks({"good_side": torch.full((num_tasks,), side), "switches": schedule})


def episode(envs, action: int):
    """Play ``action`` twice everywhere; return the places reached and what both steps returned."""
    actions = torch.full((envs.num_envs,), action)
    first = envs.step(actions)
    return first[0], first, envs.step(actions)


@pytest.mark.parametrize("family", [TwoStep(), FAMILY, TwoStep(0.8, switch_probability=0.5)])
def test_the_family_conforms(family) -> None:
    check_distribution(family, steady=family.switch_probability == 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(TaskEnv(family), skip_render_check=True)


@pytest.mark.parametrize("action", [0, 1])
@pytest.mark.parametrize("side", [0, 1])
def test_transitions_and_rewards_have_their_frequencies(action: int, side: int) -> None:
    n = 20_000
    envs = FAMILY.make_envs(n, CPU)
    observation, _ = envs.reset(seed=1, options={"tasks": tasks_of(side, [], n)})
    assert not observation.any()
    place, first, second = episode(envs, action)
    assert set(place.tolist()) == {1, 2}
    common = place == 1 + action
    assert abs(float(common.float().mean()) - 0.8) < 4 * 0.4 / n**0.5
    assert not first[1].any() and not first[4]["expected_reward"].any()
    _, reward, terminated, truncated, info = second
    for good, chance in ((True, 0.85), (False, 0.2)):
        there = (place == 1 + side) == good
        paid = reward[there]
        assert abs(float(paid.mean()) - chance) < 4 * (chance * (1 - chance) / len(paid)) ** 0.5
        assert set(paid.tolist()) == {0.0, 1.0}
        torch.testing.assert_close(info["expected_reward"][there], torch.full_like(paid, chance))
    assert not first[2].any() and not first[3].any()
    assert terminated.all() and not truncated.any()
    assert torch.equal(info["final_obs"], place) and not second[0].any()


def test_the_second_action_is_without_effect() -> None:
    results = []
    for second in (0, 1):
        envs = FAMILY.make_envs(500, CPU)
        envs.reset(seed=2, options={"tasks": sample_tasks(FAMILY, 500, 0, "test")})
        envs.step(torch.zeros(500, dtype=torch.int64))
        _, reward, *_, info = envs.step(torch.full((500,), second))
        results.append(torch.cat([reward, info["regret"], info["expected_reward"]]))
    assert torch.equal(*results)
    assert not info["regret"].any()


def test_regret_is_what_a_choice_loses_of_the_optimum() -> None:
    n = 40_000
    for action, value in ((0, 0.8 * 0.85 + 0.2 * 0.2), (1, 0.2 * 0.85 + 0.8 * 0.2)):
        tasks = tasks_of(0, [], n)
        envs = FAMILY.make_envs(n, CPU)
        envs.reset(seed=3, options={"tasks": tasks})
        _, first, second = episode(envs, action)
        regret = FAMILY.optimal_return(tasks) - value
        torch.testing.assert_close(first[4]["regret"], regret, atol=1e-6, rtol=0)
        torch.testing.assert_close(first[4]["regrets"][:, action], regret, atol=1e-6, rtol=0)
        torch.testing.assert_close(second[4]["regrets"], torch.zeros(n, 2))
        # The value is what such episodes earn on average.
        assert abs(float(second[1].mean()) - value) < 4 * 0.5 / n**0.5
    torch.testing.assert_close(TwoStep().optimal_return(tasks), torch.full((n,), 0.7))


# When the side switches


def good_sides(envs, episodes: int) -> list[int]:
    """The side of each episode, as the regret of action 0 betrays it."""
    return [int(episode(envs, 0)[1][4]["regret"][0] > 0) for _ in range(episodes)]


def test_the_side_flips_at_the_scheduled_episodes() -> None:
    envs = FAMILY.make_envs(1, CPU)
    envs.reset(seed=0, options={"tasks": tasks_of(1, [2, 3, 7], 1)})
    assert good_sides(envs, 10) == [1, 1, 0, 1, 1, 1, 1, 0, 0, 0]
    envs.reset(options={"tasks": tasks_of(0, [1], 1)})  # new tasks begin at their first episode
    assert good_sides(envs, 3) == [0, 1, 1]


def test_after_the_last_switch_the_side_stays() -> None:
    family = TwoStep(switch_probability=1.0)
    envs = family.make_envs(1, CPU)
    tasks = sample_tasks(family, 1, 0, "test")
    envs.reset(seed=0, options={"tasks": tasks})
    start = int(tasks.parameters["good_side"])
    expected = [(start + min(i, MAX_SWITCHES)) % 2 for i in range(70)]
    assert good_sides(envs, 70) == expected


@pytest.mark.parametrize("probability", [0.025, 0.5])
def test_gaps_between_switches_are_geometric(probability: float) -> None:
    drawn = sample_tasks(TwoStep(switch_probability=probability), 1000, 0, "train").parameters["switches"]
    gaps = drawn.diff(dim=1, prepend=torch.zeros(1000, 1, dtype=torch.int64))
    assert gaps.min() == 1
    law = scipy.stats.geom(probability)
    edges = np.unique(law.ppf([0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99]))
    counts = np.bincount(np.searchsorted(edges, gaps.flatten().numpy()), minlength=len(edges) + 1)
    chances = np.diff(law.cdf(edges), prepend=0, append=1)
    assert scipy.stats.chisquare(counts, counts.sum() * chances).pvalue > 1e-3
    columns = gaps.float()
    correlation = torch.corrcoef(torch.stack([columns[:, :-1].flatten(), columns[:, 1:].flatten()]))[0, 1]
    assert abs(correlation) < 0.02


@pytest.mark.parametrize(("probability", "first"), [(0.0, 2**40), (1e-300, 2**40), (1.0, 1)])
def test_the_ends_of_the_switch_probability(probability: float, first: int) -> None:
    tasks = sample_tasks(TwoStep(switch_probability=probability), 50, 0, "test")
    assert (tasks.parameters["switches"] == first * torch.arange(1, MAX_SWITCHES + 1)).all()
    revived = TensorTasks.from_dict(json.loads(json.dumps(tasks.to_dict())))
    assert all(torch.equal(revived.parameters[name], tasks.parameters[name]) for name in tasks.parameters)


def test_either_side_is_the_good_one_at_first() -> None:
    side = sample_tasks(TwoStep(), 20_000, 0, "train").parameters["good_side"]
    assert abs(float(side.double().mean()) - 0.5) < 4 * 0.5 / 20_000**0.5
    assert set(side.tolist()) == {0, 1}


# The optimum of an agent that does not know the side


def best_of_all_strategies(family: TwoStep, weights: NDArray, episodes: int) -> float:
    """Bellman's recursion over the unnormalised posterior of the side, both actions tried everywhere."""
    if episodes == 0:
        return 0.0
    values = []
    for action in (0, 1):
        value = 0.0
        for place in (0, 1):
            reach = family.common if place == action else 1 - family.common
            pay = np.where(np.arange(2) == place, family.high, family.low)  # by good side
            value += reach * float(weights @ pay)
            for likelihood in (pay, 1 - pay):
                value += best_of_all_strategies(family, reach * weights * likelihood, episodes - 1)
        values.append(value)
    return max(values)


@pytest.mark.parametrize("family", [TwoStep(), TwoStep(0.6, 0.7, 0.3), TwoStep(1.0, 1.0, 0.0), TwoStep(0.5)])
@pytest.mark.parametrize("episodes", [1, 2, 4])
def test_no_strategy_beats_the_bayes_optimal_return(family: TwoStep, episodes: int) -> None:
    expected = best_of_all_strategies(family, np.array([0.5, 0.5]), episodes)
    assert family.bayes_optimal_return(episodes) == pytest.approx(expected, abs=1e-12)


def test_the_bayes_optimum_is_told_only_where_it_is_known() -> None:
    assert 10 * 0.7 - TwoStep().bayes_optimal_return(10) == pytest.approx(0.3118, abs=5e-5)
    assert 100 * 0.7 - TwoStep().bayes_optimal_return(100) == pytest.approx(0.3125, abs=5e-5)
    assert TwoStep(switch_probability=0.01).bayes_optimal_return(10) is None
    assert TwoStep(high=0.9, low=0.2).bayes_optimal_return(10) is None
    assert TwoStep().bayes_optimal_return(10**9) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"common": 0.4}, "greater than or equal to 0.5"),
        ({"common": 1.1}, "less than or equal to 1"),
        ({"high": 0.1, "low": 0.1}, r"low < high \(here 0.1 and 0.1\)"),
        ({"low": -0.1}, "greater than or equal to 0"),
        ({"switch_probability": 1.5}, "less than or equal to 1"),
        ({"switch_probability": float("nan")}, "finite"),
        ({"side": 1}, "[Uu]nexpected keyword"),
    ],
)
def test_nonsense_is_refused(arguments, message) -> None:
    with pytest.raises(ValidationError, match=message):
        TwoStep(**arguments)


def test_tasks_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="expected TensorTasks with 'good_side', got dict"):
        TwoStep().optimal_return({})
