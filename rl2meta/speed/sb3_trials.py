"""A batch of trials as a Stable-Baselines3 VecEnv: the fast way to give our tasks to its agents."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rl2meta.randomness import derive
from rl2meta.spaces import encoding
from rl2meta.tasks import TaskDistribution, sample_tasks

Array = NDArray[Any]


class TrialVecEnv(VecEnv):
    """``num_envs`` trials of one-step episodes; all begin and end together, each on its own task.

    The observations are those of ``rl2meta.interop.TrialEnv``. All tasks are drawn anew when the trials end.
    """

    def __init__(self, distribution: TaskDistribution, num_envs: int, num_episodes: int) -> None:
        self._distribution, self._num_episodes = distribution, num_episodes
        self._envs = distribution.make_envs(num_envs, torch.device("cpu"))
        self._observation = encoding(distribution.observation_space)
        self._action = encoding(distribution.action_space)
        size = self._observation.size + self._action.size + 2
        space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        super().__init__(num_envs, space, distribution.action_space)
        self._trials = 0
        self._episode = 0
        self._actions: Tensor

    def reset(self) -> Array:
        """Start the next trials."""
        self._trials, self._episode = self._trials + 1, 0
        tasks = sample_tasks(self._distribution, self.num_envs, self._trials, "train")
        observation, _ = self._envs.reset(seed=derive(self._trials, "envs"), options={"tasks": tasks})
        return self._flat(
            observation, torch.zeros(self.num_envs, self._action.size), torch.zeros(self.num_envs)
        )

    def step_async(self, actions: Array) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = torch.as_tensor(actions)

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Take one step in every trial, with the actions that ``step_async`` kept."""
        observation, reward, _, _, _ = self._envs.step(self._actions)
        self._episode += 1
        flat = self._flat(observation, self._action.encode(self._actions), reward)
        over = self._episode == self._num_episodes
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if over:
            infos = [{"terminal_observation": row} for row in flat]
            flat = self.reset()
        return flat, reward.numpy(), np.full(self.num_envs, over), infos

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return the batch's own attribute once for every trial, as Stable-Baselines3 asks."""
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse, because a trial of the batch is not an object."""
        raise NotImplementedError("expected no attributes to be set on a batch of trials")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse, as ``set_attr`` does."""
        raise NotImplementedError(f"expected no call of {method_name} on a batch of trials")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False for every trial: none is wrapped."""
        return [False] * self.num_envs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Change nothing: the random streams depend on the number of the reset alone."""
        return [None] * self.num_envs

    def _flat(self, observation: Tensor, action: Tensor, reward: Tensor) -> Array:
        first = torch.ones(self.num_envs, 1)
        flat = torch.cat([self._observation.encode(observation), action, reward.unsqueeze(1), first], dim=1)
        return flat.numpy()
