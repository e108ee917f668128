"""A trial as one Gymnasium episode.

A *flat observation* is a ``TimeStep`` as one float32 vector: the encoding of the observation, the encoding of
the previous action, the previous reward, and 1 if an inner episode begins, else 0.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from rl2meta.counted import ACTION_MASK
from rl2meta.spaces import Encoding, encoding
from rl2meta.tasks import Tasks

Array = NDArray[Any]
_MAX = np.finfo(np.float32).max  # Gymnasium's checker refuses infinite bounds


class TrialEnv(gym.Env[Array, Any]):
    """A trial of several episodes on one task, as one episode of Gymnasium.

    When an inner episode ends, the next begins in the same step, on the same task, by the inner environment's
    ``reset()`` without arguments. The trial ends by termination, because no reward follows it. ``reset``
    starts a trial with a new seed for the inner environment; the built-in families then draw a new task.
    ``reset(options={"tasks": ...})`` sets the task instead. The info of a step is that of the inner
    environment.

    Flat observation: float32 [observation size + action size + 2]; at a trial's start, action and reward
    are all zero. The terminal observation does not begin an episode.

    Args:
        env: any single environment, such as from ``gym.make``, with Discrete or Box observations and
            Discrete, MultiDiscrete, MultiBinary or Box actions.
        num_episodes: number of episodes in a trial.
        tasks: held-out tasks, or None. Each reset uses the next one, in order, and after the last the first;
            a reset with a seed starts with the first.

    Raises:
        ValueError: for fewer than one episode, or no tasks.
        TypeError: for other spaces.
    """

    def __init__(self, env: gym.Env[Any, Any], num_episodes: int, tasks: Tasks | None = None) -> None:
        if num_episodes < 1:
            raise ValueError(f"expected num_episodes >= 1, got {num_episodes}")
        if tasks is not None and len(tasks) < 1:
            raise ValueError("expected at least one task, or None to let the environment draw them, got 0")
        self._observation, self._action = seen_encoding(env.observation_space), encoding(env.action_space)
        self.env, self.num_episodes, self.tasks = env, num_episodes, tasks
        self.metadata, self.render_mode = env.metadata, env.render_mode
        self.action_space = env.action_space
        self.observation_space = _flat_space(env.observation_space, env.action_space)
        self._next_task = 0
        self._episodes_left = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start a trial."""
        super().reset(seed=seed)
        if seed is not None:
            self._next_task = 0
        self._episodes_left = self.num_episodes
        inner = int(self.np_random.integers(2**31))
        observation, info = self.env.reset(seed=inner, options=self._options(options))
        return self._flat(observation, np.zeros(self._action.size), 0.0, first=True), info

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Take one step; after the end of the trial, call ``reset`` first."""
        if not self._episodes_left:
            raise gym.error.ResetNeeded("expected a reset before a trial's first step; call reset()")
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._episodes_left -= terminated or truncated
        over = not self._episodes_left
        first = (terminated or truncated) and not over
        if first:
            observation, begun = self.env.reset()
            mask = {ACTION_MASK: begun[ACTION_MASK]} if ACTION_MASK in begun else {}
            info = {key: value for key, value in info.items() if key != ACTION_MASK} | mask
        vector = _vector(self._action.encode, action)
        return self._flat(observation, vector, float(reward), first), float(reward), over, False, info

    def render(self) -> Any:
        """Render the inner environment."""
        return self.env.render()

    def close(self) -> None:
        """Close the inner environment."""
        self.env.close()

    def _options(self, options: dict[str, Any] | None) -> dict[str, Any] | None:
        if self.tasks is None or "tasks" in (options or {}):
            return options
        index = self._next_task % len(self.tasks)
        self._next_task = index + 1
        return {**(options or {}), "tasks": self.tasks[index : index + 1]}

    def _flat(self, observation: Any, action: Array, reward: float, first: bool) -> Array:
        tail = np.array([reward, first])
        return np.concatenate(
            [_vector(self._observation.encode, observation), action, tail], dtype=np.float32
        )


def seen_encoding(space: gym.Space[Any]) -> Encoding:
    """Return the encoding of an observation in a flat one.

    Raises:
        TypeError: unless the space is Discrete or a Box.
    """
    if not isinstance(space, gym.spaces.Discrete | gym.spaces.Box):
        raise TypeError(
            f"expected a Discrete or Box space of observations, got {space}; flatten it with "
            "gymnasium.wrappers.FlattenObservation"
        )
    return encoding(space)


def _flat_space(observation: gym.Space[Any], action: gym.Space[Any]) -> gym.spaces.Box:
    (low_o, high_o), (low_a, high_a) = _bounds(observation), _bounds(action)
    low = np.concatenate([low_o, np.minimum(low_a, 0), [-_MAX], [0]])  # zeros before the first action
    high = np.concatenate([high_o, np.maximum(high_a, 0), [_MAX], [1]])
    return gym.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def _bounds(space: gym.Space[Any]) -> tuple[Array, Array]:
    size = encoding(space).size
    if isinstance(space, gym.spaces.Box):
        return np.clip(space.low.ravel(), -_MAX, _MAX), np.clip(space.high.ravel(), -_MAX, _MAX)
    return np.zeros(size), np.ones(size)


def _vector(encode: Any, element: Any) -> Array:
    return np.asarray(encode(torch.as_tensor(np.array(element))).numpy())
