"""The interface for a user's own Gymnasium environments: draw a task, make the environment of a task."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl2meta.counted import from_zero, is_counted, sizes_of
from rl2meta.errors import UserError

Task = Mapping[str, Any]
EMITTED = ("expected_reward", "regret")
"""The values that an environment may put into the info of a step, if it knows them."""
_FLATTENED = (spaces.Dict, spaces.Tuple, spaces.MultiDiscrete, spaces.MultiBinary)
_MAX = float(np.finfo(np.float32).max)


@runtime_checkable
class SingleFamily(Protocol):
    """A family of tasks, each played by an ordinary Gymnasium environment.

    A family may also have two more methods. ``set_task(env, task)`` gives another task to an environment that
    ``make_env`` made; this saves time where making one is slow. ``optimal_return(task) -> float`` is the best
    expected return of an episode. An attribute ``model``, one of ``rl2meta.models``, gives it the references
    of that model. Environments that know ``regret`` (>= 0) and ``expected_reward`` put them into the info of
    every step. If ``make_env`` has an argument ``render_mode``, its environments can be shown.
    """

    @property
    def horizon(self) -> int:
        """The maximum number of steps in an episode; longer episodes are truncated there."""
        ...

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        """Draw one task: a mapping of numbers, strings, arrays, lists and mappings.

        All draws must come from ``rng``. ``split`` is "train" or "test"; a family of finitely many tasks
        should give each split its own part of them.
        """
        ...

    def make_env(self, task: Task) -> gym.Env[Any, Any]:
        """Return an environment that plays ``task``; it keeps the task after every ``reset``."""
        ...


def unfit(family: Any) -> list[str]:
    """Return messages about what an object lacks to be a ``SingleFamily``."""
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


def make_shown(family: SingleFamily, task: Task, render_mode: str) -> gym.Env[Any, Any]:
    """Return an environment that plays ``task`` and renders; workers never do.

    Raises:
        UserError: for a family whose ``make_env`` has no argument ``render_mode``.
    """
    make: Any = family.make_env
    if "render_mode" not in inspect.signature(make).parameters:
        raise UserError(
            f"{type(family).__name__}: expected make_env(task, render_mode=None) to render, got one "
            "without render_mode; add it, and give it to the environment"
        )
    env: gym.Env[Any, Any] = make(task, render_mode=render_mode)
    return env


class Described(NamedTuple):
    """The properties that all environments of a family must share.

    Attributes:
        observation_space, action_space: the spaces of the environment.
        emits: the names in ``EMITTED`` that the info of a step holds.
        masks: where masks of illegal actions come from: "info", "observation", or "" for nowhere.
    """

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    emits: tuple[str, ...] = ()
    masks: str = ""

    @property
    def mask_size(self) -> int:
        """A, the length of a mask: how many values all entries of an action have together; 0 without."""
        return sum(sizes_of(self.action_space)) if self.masks else 0


def observed(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the space of the observations that agents see, given the observation space of an environment.

    Discrete spaces stay discrete and start at 0. Boxes of uint8 do not change. Other boxes become float32.
    Gymnasium flattens Dict, Tuple, MultiDiscrete and MultiBinary into one float32 vector (one-hot where they
    are discrete).

    Raises:
        TypeError: for a space that cannot be flattened into vectors of one length.
    """
    if isinstance(space, spaces.Discrete):
        return from_zero(space)
    if isinstance(space, _FLATTENED):
        space = _flattened(space)
    if not isinstance(space, spaces.Box):
        raise TypeError(
            f"expected an observation space that is, or is made of, Box, Discrete, MultiDiscrete, "
            f"MultiBinary, Dict or Tuple, got {space}; wrap the environment to get such a space"
        )
    return space if space.dtype == np.uint8 else _as_float32(space)


def acted(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the space of the actions that agents take: Discrete or MultiDiscrete from 0, or a Box.

    MultiDiscrete and Box have one axis. A MultiBinary is a MultiDiscrete with two values in each entry.

    Raises:
        TypeError: for any other space.
    """
    if is_counted(space):
        return from_zero(space)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        flat = spaces.flatten_space(space)
        assert isinstance(flat, spaces.Box)  # a Box flattens to a Box
        return _as_float32(flat)
    raise TypeError(
        f"expected an action space that is Discrete, MultiDiscrete, MultiBinary or a Box of floats, got "
        f"{space}; wrap the environment to get such actions"
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
