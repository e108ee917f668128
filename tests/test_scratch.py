"""PPO from scratch on single tasks: what it earned, episode by episode."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.experiments.scratch import _sizes, learn_from_scratch
from rl2meta.tasks import TensorTasks, sample_tasks

BANDITS = BernoulliBandits(num_arms=2)


def means(*rows: list[float]) -> TensorTasks:
    return TensorTasks({"means": torch.tensor(rows)})


def test_it_learns_each_task_from_nothing() -> None:
    done: list[int] = []
    result = learn_from_scratch(BANDITS, means([0.1, 0.9], [0.9, 0.1]), 300, 0, done.append)
    assert done == [1, 2]
    assert result.regrets is not None
    for array in (result.rewards, result.regrets, result.steps):
        assert array.shape == (2, 300) and array.dtype == np.float32
    assert (result.steps == 1).all()
    assert (abs(result.rewards[:, :20].mean(1) - 0.5) < 0.3).all()  # it starts with a policy near uniform
    assert (result.rewards[:, -50:].mean(1) > 0.7).all()
    np.testing.assert_allclose(result.rewards + result.regrets, 0.9, rtol=1e-6)
    assert result.seconds > 0 and not result.constants


def test_the_seed_decides_and_tasks_have_streams_of_their_own() -> None:
    same = means([0.2, 0.8], [0.2, 0.8])
    one, again, other = (learn_from_scratch(BANDITS, same, 40, seed).rewards for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one[0] != one[1]).any()
    np.testing.assert_array_equal(learn_from_scratch(BANDITS, same[:1], 40, 1).rewards[0], one[0])


def test_global_generators_are_left_as_they_were() -> None:
    def draws() -> list[float]:
        return [random.random(), float(np.random.random()), float(torch.rand(()))]

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    want = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    learn_from_scratch(BANDITS, means([0.5, 0.5]), 10, 0)
    assert draws() == want


@pytest.mark.parametrize("num_episodes", [1, 7, 25])  # an update takes ten
def test_a_tabular_mdp(num_episodes: int) -> None:
    family = TabularMDPs(num_states=3, num_actions=2, horizon=5)
    tasks = sample_tasks(family, 2, 0, "test")
    result = learn_from_scratch(family, tasks, num_episodes, 0)
    assert result.regrets is not None
    assert result.rewards.shape == (2, num_episodes)
    assert (result.steps == 5).all()
    assert (result.regrets >= 0).all()
    assert (result.rewards[0] != result.rewards[1]).any()
    best = tasks.parameters["reward_means"].amax((1, 2)).numpy() * 5  # type: ignore[attr-defined]
    assert (result.rewards <= best[:, None] + 1e-4).all()


def test_episodes_that_end_early_are_counted_and_the_task_stays(corridor: Any) -> None:
    family = corridor(horizon=6, noise=0.5)
    result = learn_from_scratch(family, TensorTasks({"length": torch.tensor([1, 6])}), 30, 0)
    assert result.rewards.shape == (2, 30)
    assert set(result.rewards[0]) <= {0, 1} and result.rewards[0].sum() > 15  # expected ones, without noise
    assert len(set(result.steps[0])) > 1
    assert (result.steps[1] == 6).all()  # the longest corridor leaves no time to spare


def test_a_family_that_knows_no_regret_gets_none(corridor: Any) -> None:
    family = corridor(noise=0.0)
    make_envs = family.make_envs

    class Silent:
        def __init__(self, envs: Any) -> None:
            self.num_envs, self.reset, self._step = envs.num_envs, envs.reset, envs.step
            self.close = envs.close

        def step(self, actions: torch.Tensor) -> Any:
            *rest, info = self._step(actions)
            return *rest, {"final_obs": info["final_obs"]}

    family.make_envs = lambda num_envs, device: Silent(make_envs(num_envs, device))
    result = learn_from_scratch(family, TensorTasks({"length": torch.tensor([1])}), 20, 0)
    assert result.regrets is None
    assert set(result.rewards[0]) <= {0, 1}  # the sampled ones


@pytest.mark.parametrize(
    ("horizon", "sizes"), [(1, (10, 10)), (5, (50, 50)), (10, (100, 50)), (53, (530, 53)), (999, (2048, 64))]
)
def test_updates_of_ten_episodes_in_equal_minibatches(horizon: int, sizes: tuple[int, int]) -> None:
    assert _sizes(horizon) == sizes


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one episode and task, got 0 and 1"):
        learn_from_scratch(BANDITS, means([0.5, 0.5]), 0, 0)
    with pytest.raises(ValueError, match="got 3 and 0"):
        learn_from_scratch(BANDITS, means([0.5, 0.5])[:0], 3, 0)
