"""Conversion between elements of an environment's spaces and the observations and actions of agents."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl2meta.workers.block import Array
from rl2meta.workers.faults import Broken


def reader(space: gym.Space[Any]) -> Callable[[Any], Any]:
    """Return a function that checks an observation of ``space`` and converts it to ``observed(space)``."""
    if isinstance(space, spaces.Discrete):
        return lambda x: _index(space, x)
    if not isinstance(space, spaces.Box):
        return lambda x: _flat(space, x)
    shape, dtype = space.shape, space.dtype

    def read(x: Any) -> Any:
        if not isinstance(x, np.ndarray) or x.shape != shape or x.dtype != dtype:
            got = f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else f"{kind(x)} {x!r:.80}"
            raise Broken(f"expected a NumPy array {dtype} {list(shape)} for an observation, got {got}")
        return x

    return read


def actor(space: gym.Space[Any]) -> Callable[[Any], Any]:
    """Return a function that turns an element of ``acted(space)`` into an element of ``space``."""
    if isinstance(space, spaces.Discrete):
        start = space.start
        return (lambda a: a + start) if start else lambda a: a
    shape, dtype = space.shape, space.dtype
    if dtype == np.float32:
        return lambda a: a.astype(dtype).reshape(shape)
    assert isinstance(space, spaces.Box)  # acted() accepts only Discrete and Box
    low, high = space.low, space.high

    def act(a: Array) -> Array:
        """Return an action inside the bounds; rounding to float32 may have moved it outside."""
        action: Array = a.astype(dtype).reshape(shape)
        return np.clip(action, low, high, out=action)

    return act


def _index(space: spaces.Discrete, x: Any) -> int:
    if x not in space:
        raise Broken(f"expected an observation in {space}, got {kind(x)} {x!r:.80}")
    return int(x) - int(space.start)


def _flat(space: gym.Space[Any], x: Any) -> Array:
    if x not in space:
        raise Broken(f"expected an observation in {space}, got {x!r:.300}")
    return np.asarray(spaces.flatten(space, x))


def kind(thing: Any) -> str:
    """Return the type of a value in words, for messages."""
    return f"a tuple of {len(thing)}" if isinstance(thing, tuple) else type(thing).__name__
