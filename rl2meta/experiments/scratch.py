"""How much of each task an agent without meta-training needs: Stable-Baselines3's PPO, from scratch."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from rl2meta.counted import ACTION_MASK
from rl2meta.envs.batched import TaskEnv
from rl2meta.errors import UserError
from rl2meta.evaluation import AgentResult
from rl2meta.randomness import derive
from rl2meta.tasks import TaskDistribution, Tasks

_NET_ARCH = [64, 64]
_LARGEST_BATCH = 64  # Stable-Baselines3's default
_EPISODES_PER_UPDATE = 10
_FEWEST_STEPS, _MOST_STEPS = 8, 2048  # of an update; 2048 is Stable-Baselines3's default


def learn_from_scratch(
    distribution: TaskDistribution,
    tasks: Tasks,
    num_episodes: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> AgentResult:
    """Train a new PPO on each task for ``num_episodes`` episodes; return the rewards during the training.

    Every interaction counts, also the first ones. The settings are the defaults of Stable-Baselines3
    (MlpPolicy, 64-64) with one change: an update comes after ten episodes, but after at least 8 and at most
    2,048 steps. The default of 2,048 steps could be longer than a short trial. It runs on the CPU and does
    not change the number of torch's threads. Stable-Baselines3 seeds the global random generators; their
    states are restored at the end.

    Args:
        distribution: the family of the tasks.
        tasks: one run of PPO for each.
        num_episodes: exact number of episodes of each run.
        seed: of the networks, the actions and the environments; task i uses the i-th stream of it.
        progress: called after each task with the number of tasks done.

    Raises:
        ValueError: for fewer than one episode or task.
    """
    if num_episodes < 1 or len(tasks) < 1:
        raise ValueError(f"expected at least one episode and task, got {num_episodes} and {len(tasks)}")
    began, lives = time.perf_counter(), []
    for i in range(len(tasks)):
        lives.append(_learn(distribution, tasks[i : i + 1], num_episodes, derive(seed, "scratch", i)))
        if progress is not None:
            progress(i + 1)
    rewards, regrets, steps = np.array([life.episodes for life in lives], np.float32).transpose(2, 0, 1)
    known = regrets if lives[0].emits_regret else None
    return AgentResult(rewards, known, steps, time.perf_counter() - began)


class _Life(gym.Wrapper[Any, Any, Any, Any]):
    """An environment with one task that records its episodes.

    A reset with a seed sets the task; any other reset keeps it.

    Attributes:
        episodes: for each episode [3]: the sum of the rewards (the expected rewards if the family emits
            them, as in ``rl2meta.evaluation``), the sum of the regrets (0 if it emits none), the number of
            steps.
        emits_regret: whether the family emits regrets.
    """

    def __init__(self, env: gym.Env[Any, Any], task: Tasks) -> None:
        super().__init__(env)
        self.episodes: list[NDArray[np.float64]] = []
        self.emits_regret = False
        self._task = task
        self._now = np.zeros(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._now = np.zeros(3)
        if seed is not None:
            options = {**(options or {}), "tasks": self._task}
        observation, info = self.env.reset(seed=seed, options=options)
        if ACTION_MASK in info:
            raise UserError(
                "scratch: expected a family without masks, which Stable-Baselines3's PPO ignores, got "
                "action_mask in the info; leave --scratch out"
            )
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take one step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.emits_regret = "regret" in info
        self._now += (info.get("expected_reward", reward), info.get("regret", 0.0), 1)
        if terminated or truncated:
            self.episodes.append(self._now)
        return observation, reward, terminated, truncated, info


class _StopAfter(BaseCallback):
    """Ends the training right after the last episode, also between two updates."""

    def __init__(self, life: _Life, num_episodes: int) -> None:
        super().__init__()
        self._life, self._num_episodes = life, num_episodes

    def _on_step(self) -> bool:
        return len(self._life.episodes) < self._num_episodes


def _learn(distribution: TaskDistribution, task: Tasks, num_episodes: int, seed: int) -> _Life:
    life = _Life(TaskEnv(distribution), task)
    num_steps, batch_size = _sizes(distribution.horizon)
    with _global_randomness_kept():
        ppo = PPO(
            "MlpPolicy",
            DummyVecEnv([lambda: life]),
            n_steps=num_steps,
            batch_size=batch_size,
            policy_kwargs={"net_arch": _NET_ARCH},
            device="cpu",
            seed=seed % 2**32,  # NumPy's global generator accepts no more
        )
        try:
            ppo.learn(num_episodes * distribution.horizon, callback=_StopAfter(life, num_episodes))
        finally:
            life.close()
    return life


def _sizes(horizon: int) -> tuple[int, int]:
    """Return the steps of an update and the largest minibatch that divides them."""
    num_steps = min(_MOST_STEPS, max(_FEWEST_STEPS, _EPISODES_PER_UPDATE * horizon))
    divisors = (size for size in range(min(_LARGEST_BATCH, num_steps), 0, -1) if num_steps % size == 0)
    return num_steps, next(divisors)


@contextmanager
def _global_randomness_kept() -> Iterator[None]:
    """Restore the states of the global random generators at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
