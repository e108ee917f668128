"""How many tasks are computed at a time is decided in one place, and changes no digit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rl2meta.agents.maml import MAMLAgent
from rl2meta.agents.maml_regression import MAMLRegressionConfig, maml_regression_learner
from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.references.catalogue import references_on
from rl2meta.agents.references.tabular import tabular_references
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.sinusoids import Sinusoids
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.evaluation import AgentResult, evaluate
from rl2meta.parts import MOST_NUMBERS, at_most, in_parts
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TaskDistribution, sample_tasks
from rl2meta.trial import Agent

SIZES = [
    (num_tasks, per_task, most)
    for num_tasks in (1, 15, 16, 17, 100, 999, 1000, 5_000)
    for per_task in (1, 7, 500)
    for most in (1, 499, 3500, 10_000, 2**20)
]


@pytest.mark.parametrize(("num_tasks", "per_task", "most"), SIZES)
@pytest.mark.parametrize("multiple_of", [1, 16])
def test_parts_hold_every_task_once_and_no_more_numbers_than_they_may(
    num_tasks: int, per_task: int, most: int, multiple_of: int
) -> None:
    parts = in_parts(num_tasks, per_task, most, multiple_of)
    assert [task for part in parts for task in range(num_tasks)[part]] == list(range(num_tasks))
    sizes = [part.stop - part.start for part in parts]
    at_once = max(1, most // per_task)
    assert max(sizes) <= at_once
    assert max(sizes[:-1], default=sizes[-1]) == min(sizes[:-1], default=sizes[-1]) >= sizes[-1]
    if num_tasks <= at_once:
        assert len(parts) == 1
    if at_once >= multiple_of:
        assert all(part.start % multiple_of == 0 for part in parts)
    if multiple_of == 1:
        fewest = -(-num_tasks // at_once)
        assert max(sizes) == -(-num_tasks // fewest)  # as few parts as possible, and about equal ones


def test_no_tasks_are_one_part() -> None:
    assert in_parts(0, 5) == [slice(0, 0)]


@pytest.mark.parametrize("numbers", [(-1, 1), (1, 0), (1, 1, 0), (1, 1, 1, 0)])
def test_numbers_that_are_too_small_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected num_tasks >= 0 and numbers_per_task, .* got"):
        in_parts(*numbers)


def test_a_limit_holds_inside_with_and_never_raises_a_bound() -> None:
    whole = in_parts(100, MOST_NUMBERS // 100)
    assert whole == [slice(0, 100)]
    with at_most(MOST_NUMBERS // 2):
        assert len(in_parts(100, MOST_NUMBERS // 100)) == 3  # of 48, 48 and 4
        assert in_parts(10, 1, 5) == [slice(0, 5), slice(5, 10)]
        with at_most(3), pytest.raises(RuntimeError, match="inside"):
            assert len(in_parts(10, 1, 5)) == 4
            raise RuntimeError("inside")
        assert in_parts(10, 1, 5) == [slice(0, 5), slice(5, 10)]
    assert in_parts(100, MOST_NUMBERS // 100) == whole


def _maml(law: TaskDistribution) -> MAMLAgent:
    config = MAMLTRPOConfig(hidden_sizes=[16, 16], episodes_per_phase=3, inner_learning_rates=[1.0])
    return MAMLTRPOLearner(law.observation_space, law.action_space, config).agent


def _regression(law: TaskDistribution) -> MAMLAgent:
    config = MAMLRegressionConfig(episodes_per_phase=3, inner_learning_rates=[0.1])
    return maml_regression_learner(law.observation_space, law.action_space, config).agent


def _greedy(law: TabularMDPs) -> Agent[Any]:
    return tabular_references(law.num_states, law.num_actions, law.horizon)["greedy"].build()


def _greedy_step(law: TabularMDPs) -> Agent[Any]:
    return references_on(law.model, law.action_space, 3)["greedy_step"].build()


Pair = tuple[Any, Callable[[Any], Agent[Any]]]
PAIRS: dict[str, Pair] = {
    "maml on mdps": (TabularMDPs(), _maml),
    "maml on navigation": (PointNavigation(horizon=10), _maml),
    "maml on sinusoids": (Sinusoids(), _regression),
    "greedy on mdps": (TabularMDPs(), _greedy),
    "greedy step on mdps": (TabularMDPs(), _greedy_step),
}


def _numbers(law: Any, agent: Agent[Any]) -> int:
    """About how many numbers the work on a task holds, of the agent or the family."""
    if not isinstance(agent, MAMLAgent):
        return int(8 * law.horizon * law.num_states * law.num_actions)
    lived = RolloutWorker(law).run(agent, sample_tasks(law, 1, 0, "test"), 3, 0)
    return agent.numbers_per_task(lived.phases[0])


@pytest.mark.parametrize(("law", "make"), PAIRS.values(), ids=PAIRS)
def test_an_evaluation_does_not_depend_on_how_many_tasks_are_computed_at_a_time(
    law: Any, make: Callable[[Any], Agent[Any]]
) -> None:
    agent, tasks = make(law), sample_tasks(law, 100, 0, "test")
    numbers = _numbers(law, agent)
    whole = evaluate(agent, RolloutWorker(law), tasks, 6, 0)
    for at_once in (16, 40):
        with at_most(at_once * numbers):
            assert len(in_parts(100, numbers)) > 3
            _assert_same(evaluate(agent, RolloutWorker(law), tasks, 6, 0), whole)


def test_an_optimum_does_not_depend_on_how_many_are_solved_at_a_time() -> None:
    law = TabularMDPs()
    tasks = sample_tasks(law, 100, 0, "test")
    whole = law.optimal_return(tasks)
    with at_most(16 * 8 * 500):
        assert len(list(law.optima(tasks))) == 7
        assert torch.equal(law.optimal_return(tasks), whole)
    with at_most(1):  # where a matrix begins differs, and so do last bits
        torch.testing.assert_close(law.optimal_return(tasks), whole, rtol=1e-6, atol=0)


def _assert_same(one: AgentResult, other: AgentResult) -> None:
    assert np.array_equal(one.rewards, other.rewards) and np.array_equal(one.steps, other.steps)
    assert (one.regrets is None) == (other.regrets is None)
    if one.regrets is not None and other.regrets is not None:
        assert np.array_equal(one.regrets, other.regrets)
