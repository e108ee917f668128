"""Environments with spaces of every kind, which check what they are given and keep what they show."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

BOX = spaces.Box(-1, 1, (2,), np.float32)
SEEN = {
    "discrete": spaces.Discrete(5, start=-2),
    "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "float64": spaces.Box(-0.1, 0.1, (3,), np.float64),
    "unbounded": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "int": spaces.Box(-3, 7, (2, 2), np.int64),
    "multi_binary": spaces.MultiBinary(4),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "tuple": spaces.Tuple((spaces.Discrete(2, start=4), spaces.Box(0, 5, (2, 2), np.float64))),
    "dict": spaces.Dict({"place": BOX, "more": spaces.Dict({"kind": spaces.Discrete(3), "on": BOX})}),
}
DONE = {
    "discrete": spaces.Discrete(3),
    "discrete from -1": spaces.Discrete(3, start=-1),
    "box": BOX,
    "box of two axes": spaces.Box(-2, 2, (2, 3), np.float32),
    "float64": spaces.Box(-0.1, 0.1, (2, 2), np.float64),
    "float16": spaces.Box(-0.1, 0.1, (2,), np.float16),
    "choices": spaces.MultiDiscrete([3, 2]),
    "choices in a matrix": spaces.MultiDiscrete([[3, 2], [1, 4]], start=[[-1, 0], [5, 2]]),
    "switches": spaces.MultiBinary(3),
    "switches in a matrix": spaces.MultiBinary([2, 2]),
    "half bounded": spaces.Box(-0.3, np.inf, (2,), np.float64),
}
shown: dict[int, list[Any]] = {}
"""Copies of the observations by lane; in the process of the environments."""
done: list[Any] = []
"""Copies of the actions."""


class Manifold(gym.Env[Any, Any]):
    def __init__(self, lane: int, seen: str, acted: str) -> None:
        self.lane = lane
        self.observation_space, self.action_space = deepcopy(SEEN[seen]), deepcopy(DONE[acted])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        if isinstance(self.action_space, spaces.Box):
            assert isinstance(action, np.ndarray) and action.dtype == self.action_space.dtype
        done.append(deepcopy(action))
        if isinstance(action, np.ndarray):
            action *= 0  # it is the environment's own
        return self._observation(), self.np_random.normal(), bool(self.np_random.random() < 0.3), False, {}

    def _observation(self) -> Any:
        observation = self.observation_space.sample()
        shown.setdefault(self.lane, []).append(deepcopy(observation))
        return observation


class Reused(Manifold):
    """Writes every observation into one and the same array."""

    def _observation(self) -> Any:
        self.array = getattr(
            self, "array", np.zeros(self.observation_space.shape, self.observation_space.dtype)
        )
        self.array[...] = super()._observation()
        return self.array


@dataclass(frozen=True)
class Manifolds:
    seen: str = "float64"
    acted: str = "discrete"
    reused: bool = False
    horizon: int = 4

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        return {"lane": int(rng.integers(10, 1000))}

    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return (Reused if self.reused else Manifold)(task["lane"], self.seen, self.acted)


class Odd(gym.Env[Any, Any]):
    """Spaces that cannot be used, or whose elements are not what they say."""

    def __init__(self, seen: Any, acted: Any, observation: Any) -> None:
        self.observation_space, self.action_space, self._observation = seen, acted, observation

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._observation, {}

    def step(self, action: Any) -> Any:
        return self._observation, 0.0, False, False, {}


@dataclass(frozen=True)
class Odds(Manifolds):
    spaces: tuple[Any, Any] = (BOX, spaces.Discrete(2))
    observation: Any = None

    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Odd(*self.spaces, self.observation)
