"""Families that are sound, and that a hasty check calls faulty."""

import time
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from faulty_lamps import Lamp
from gymnasium.spaces import Box


class Endless(Lamp):
    """Any number is an action, and the nearer to the switch the better."""

    action_space = Box(-np.inf, np.inf, (1,), np.float32)

    def paid(self, action: Any) -> Any:
        return -abs(float(action[0]) - self.switch)


class Dim(Lamp):
    """The right switch seldom lights the lamp."""

    def paid(self, action: Any) -> Any:
        return float(action == self.switch and self.np_random.random() < 0.02)


class Distant(Lamp):
    """Each step has its cost, and the task shows only where no random walk comes."""

    def seen(self) -> Any:
        return np.zeros(3, np.float32)

    def paid(self, action: Any) -> Any:
        return -0.1 * (action == 0) + (self.total == 10**9 + self.switch)


class Certain(Lamp):
    """It has no luck, and so no generator."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.taken = 0
        return self.seen(), {}

    def seen(self) -> Any:
        return np.full(3, self.taken % 2, np.float32)


class Slow(Lamp):
    def step(self, action: Any) -> Any:
        time.sleep(0.01)
        return super().step(action)


class Wide(Lamp):
    """It shows a lot."""

    observation_space = Box(0, 1, (10**6,), np.float32)

    def seen(self) -> Any:
        return np.zeros(10**6, np.float32)


KINDS = {kind.__name__: kind for kind in (Certain, Endless, Dim, Distant, Slow, Wide)}


class Sound:
    """Lamps of a kind that ``env`` names, with a number of tasks."""

    def __init__(self, env: str, tasks: int = 4, horizon: int = 10) -> None:
        self.env, self.tasks, self.horizon = env, tasks, horizon

    def sample(self, rng: np.random.Generator, split: str) -> Any:
        return {"switch": int(rng.integers(self.tasks))}

    def make_env(self, task: Mapping[str, Any]) -> gym.Env[Any, Any]:
        return KINDS[self.env](**task)
