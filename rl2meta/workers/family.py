"""What a person brings who has a Gymnasium environment: tasks, and an environment that plays one."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Task = Mapping[str, Any]
EMITTED = ("expected_reward", "regret")
"""What an environment that knows the truth may tell in the info of a step."""
_FLATTENED = (spaces.Dict, spaces.Tuple, spaces.MultiDiscrete, spaces.MultiBinary)
_MAX = float(np.finfo(np.float32).max)


@runtime_checkable
class SingleFamily(Protocol):
    """A family of tasks, each played by an ordinary Gymnasium environment.

    A family may also have ``set_task(env, task)``, which puts an environment that ``make_env`` made on
    another task, where making one is slow; ``optimal_return(task) -> float``, the best expected return of an
    episode; and ``model``, one of ``rl2meta.models``, on which references are defined. Environments that know
    them tell ``regret`` (>= 0) and ``expected_reward`` in the info of every step.
    """

    @property
    def horizon(self) -> int:
        """The steps in an episode, at most; longer ones are truncated there."""
        ...

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        """Draw one task: a mapping of numbers, strings, arrays, lists and mappings.

        All draws must come from ``rng``. ``split`` is "train" or "test"; families of finitely many tasks
        should partition them by it.
        """
        ...

    def make_env(self, task: Task) -> gym.Env[Any, Any]:
        """Return an environment that plays ``task``, through every ``reset``."""
        ...


def unfit(family: Any) -> list[str]:
    """Return what is missing from a thing that should be a ``SingleFamily``, in words."""
    if isinstance(family, gym.Env):
        return [
            "expected a family of tasks, got an environment; name a class with sample() and make_env(), or "
            "distribution.name=gymnasium and the environment's id"
        ]
    faults = [
        f"expected a method {name}, got {getattr(family, name, None)!r:.80}"
        for name in ("sample", "make_env")
        if not callable(getattr(family, name, None))
    ]
    horizon = getattr(family, "horizon", None)
    if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
        faults.append(f"expected horizon, an int >= 1 (steps in an episode at most), got {horizon!r:.80}")
    return faults


class Described(NamedTuple):
    """What one environment of a family shows of itself; all of them must agree in it.

    Attributes:
        observation_space, action_space: as the environment has them.
        emits: which of ``EMITTED`` the info of a step has.
    """

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    emits: tuple[str, ...] = ()


def observed(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the space of the observations that agents see of a space that environments have.

    Discrete spaces, and boxes of uint8, stay; other boxes become float32; Dict, Tuple, MultiDiscrete and
    MultiBinary become one float32 vector, flattened by Gymnasium (one-hot where they are discrete).

    Raises:
        TypeError: for a space that has no vectors of one length.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, _FLATTENED):
        space = _flattened(space)
    if not isinstance(space, spaces.Box):
        raise TypeError(
            f"expected an observation space that is, or is made of, Box, Discrete, MultiDiscrete, "
            f"MultiBinary, Dict or Tuple, got {space}; wrap the environment in one that has such"
        )
    return space if space.dtype == np.uint8 else _as_float32(space)


def acted(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the space of the actions that agents take: Discrete from 0, or a Box of one axis.

    Raises:
        TypeError: for any other.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        flat = spaces.flatten_space(space)
        assert isinstance(flat, spaces.Box)  # what a Box flattens to
        return _as_float32(flat)
    raise TypeError(
        f"expected a Discrete action space or a Box of floats, got {space}; wrap the environment in one "
        "that has such actions"
    )


def _flattened(space: gym.Space[Any]) -> gym.Space[Any]:
    try:
        return spaces.flatten_space(space)
    except NotImplementedError:
        return space


def _as_float32(space: spaces.Box) -> spaces.Box:
    low, high = (
        np.where(np.isfinite(bound), np.clip(bound.astype(np.float64), -_MAX, _MAX), bound)
        for bound in (space.low, space.high)
    )
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
