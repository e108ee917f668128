"""Walks with luck from the seed and episodes of unequal length; imports no torch."""

import sys
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np


class Walk(gym.Env[Any, Any]):
    """A place moves by drift, action and luck; an episode may end at any step."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gym.spaces.Discrete(3, start=-1)

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.steps = self.episodes = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.normal()
        self.episodes += 1
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        self.steps += 1
        self.place += self.task["drift"] + 0.1 * float(action) + 0.3 * self.np_random.normal()
        over = bool(self.np_random.random() < self.task["end"])
        info = {"regret": abs(self.place), "expected_reward": -abs(self.place)}
        return self._observation(), -abs(self.place) + self.np_random.normal(), over, False, info

    def _observation(self) -> Any:
        return np.array([self.place, self.np_random.random(), self.episodes])


@dataclass(frozen=True)
class Walks:
    """Walks that drift, and end, each at a rate of its own."""

    horizon: int = 5

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        return {"drift": float(rng.normal()), "end": float(rng.uniform(0.1, 0.6))}

    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Walk(task)


class MovedWalks(Walks):
    """The same, where an environment can be put on another task."""

    def set_task(self, env: Any, task: Any) -> None:
        env.__init__(task)


class Selfish(Walk):
    """Writes into its task."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.task["drift"] += 1.0
        return super().reset(seed=seed)


class SelfishWalks(Walks):
    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Selfish(task)


class Reporter(Walk):
    """Observes whether torch is there, its steps and its episodes, and tells its steps as a regret."""

    def step(self, action: Any) -> Any:
        observation, reward, over, truncated, _ = super().step(action)
        return observation, reward, over, truncated, {"regret": float(self.steps)}

    def _observation(self) -> Any:
        return np.array([float("torch" in sys.modules), self.steps, self.episodes])


class Counted(Walks):
    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Reporter(task)


class Sheltered(gym.Env[Any, Any]):
    """A Gymnasium id of its own, whose steps observe whether torch is there."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, size: float = 0.0) -> None:
        self.size = size

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.array([float("torch" in sys.modules)], np.float32), 0.0, False, False, {}


gym.register("WorkersSheltered-v0", Sheltered, max_episode_steps=5)


class Quiet(Walk):
    """Tells no regret."""

    def step(self, action: Any) -> Any:
        return *super().step(action)[:-1], {}


class QuietWalks(Walks):
    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Quiet(task)
