"""Families whose tasks are told: what they play is what the inner ones play."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl2meta.agents.cores.recurrent import LSTMConfig
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.batched import TaskEnv
from rl2meta.envs.checking import check_distribution
from rl2meta.envs.mazes import DarkRooms
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.evaluation import ceilings
from rl2meta.revealed import Revealed
from rl2meta.rollout import RolloutWorker
from rl2meta.spaces import encoding
from rl2meta.tasks import TaskDistribution, sample_tasks
from rl2meta.training import Budget, meta_train

CPU = torch.device("cpu")
BANDITS = BernoulliBandits(num_arms=3)
MDPS = TabularMDPs(num_states=3, num_actions=2, horizon=4)
FAMILIES = pytest.mark.parametrize("family", [BANDITS, MDPS, DarkRooms(size=5)], ids=str)


@FAMILIES
@pytest.mark.parametrize("handed_over", [True, False])
def test_all_but_the_observation_is_the_inner_familys(family: TaskDistribution, handed_over: bool) -> None:
    encode = encoding(family.observation_space).encode
    options = {"tasks": sample_tasks(family, 5, 1, "test")} if handed_over else None
    inner, outer = family.make_envs(5, CPU), Revealed(family).make_envs(5, CPU)
    plain, told = inner.reset(seed=3, options=options)[0], outer.reset(seed=3, options=options)[0]
    known = told[:, encode(plain).shape[1] :]
    assert len(known.unique(dim=0)) > 1
    for i in range(2 * family.horizon + 1):
        assert told.dtype == torch.float32
        assert torch.equal(told, torch.cat([encode(plain), known], 1))
        actions = (torch.arange(5) + i) % int(family.action_space.n)  # type: ignore[attr-defined]
        plain, *others, info = inner.step(actions)
        told, *same, told_info = outer.step(actions)
        assert all(torch.equal(a, b) for a, b in zip(others, same, strict=True))
        final, told_final = info.pop("final_obs"), told_info.pop("final_obs")
        assert torch.equal(told_final, torch.cat([encode(final), known], 1))
        assert info.keys() == told_info.keys() and "regret" in info
        assert all(torch.equal(info[name], told_info[name]) for name in info)


def test_the_parameters_stand_behind_the_encoding_in_the_order_of_their_names() -> None:
    tasks = sample_tasks(MDPS, 4, 0, "train")
    envs = Revealed(MDPS).make_envs(4, CPU)
    observation, _ = envs.reset(seed=0, options={"tasks": tasks})
    means, transitions = (tasks.parameters[n].flatten(1) for n in ("reward_means", "transitions"))  # type: ignore[attr-defined]
    first = torch.tensor([[1.0, 0.0, 0.0]]).repeat(4, 1)
    assert torch.equal(observation, torch.cat([first, means, transitions], 1))
    other = sample_tasks(MDPS, 4, 1, "train")
    changed = envs.reset(options={"tasks": other})[0]
    assert torch.equal(changed[:, 3:9], other.parameters["reward_means"].flatten(1))  # type: ignore[attr-defined]
    assert torch.equal(envs.reset()[0], changed)  # a bare reset keeps the tasks
    assert not torch.equal(envs.reset(seed=1)[0], changed)


def test_without_a_seed_tasks_are_drawn_afresh() -> None:
    draws = [Revealed(BANDITS).make_envs(2, CPU).reset()[0] for _ in range(2)]
    assert not torch.equal(*draws)
    with pytest.raises(gym.error.ResetNeeded):
        Revealed(BANDITS).make_envs(2, CPU).step(torch.zeros(2, dtype=torch.int64))


@FAMILIES
def test_it_conforms(family: TaskDistribution) -> None:
    check_distribution(Revealed(family))


def test_it_says_what_it_is() -> None:
    told = Revealed(BANDITS)
    assert str(told) == f"Revealed({BANDITS})"
    assert told == Revealed(BernoulliBandits(num_arms=3)) != Revealed(MDPS)
    assert told.observation_space == gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    assert (told.action_space, told.horizon) == (BANDITS.action_space, 1)
    assert BANDITS.bayes_optimal_return(3) is not None and told.bayes_optimal_return(3) is None
    tasks = sample_tasks(told, 6, 0, "test")
    assert torch.equal(tasks.parameters["means"], sample_tasks(BANDITS, 6, 0, "test").parameters["means"])  # type: ignore[attr-defined]
    assert ceilings(told, tasks, 3).oracle_return == ceilings(BANDITS, tasks, 3).oracle_return
    observation, _ = TaskEnv(told).reset(seed=0)
    assert observation in told.observation_space and observation.dtype == np.float32


def test_tasks_without_parameters_cannot_be_revealed() -> None:
    class Secretive:
        observation_space = action_space = gym.spaces.Discrete(2)
        sample = staticmethod(lambda *arguments: [1, 2])

    with pytest.raises(TypeError, match="expected TensorTasks, whose parameters can be revealed, got list"):
        _ = Revealed(Secretive()).observation_space  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [BANDITS, MDPS], ids=str)
def test_rl2_trains_on_it(family: TaskDistribution) -> None:
    told, rows = Revealed(family), list[dict[str, Any]]()
    config = RL2Config(core=LSTMConfig(hidden_size=8), minibatches=2)
    learner = rl2_learner(told.observation_space, told.action_space, config, CPU)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    budget = Budget(updates=2, trials_per_update=8, episodes_per_trial=3)
    meta_train(learner, told, RolloutWorker(told), budget, 0, lambda row: rows.append(row) or False)  # type: ignore[func-returns-value]
    assert len(rows) == 2
    assert any(not torch.equal(before[name], value) for name, value in learner.state_dict().items())
