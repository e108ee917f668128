"""Conversion between elements of an environment's spaces and the observations and actions of agents."""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl2meta.counted import ACTION_MASK, as_element, is_counted
from rl2meta.workers.block import Array
from rl2meta.workers.family import Described
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
    if isinstance(space, spaces.Discrete) and not space.start:
        return lambda a: a
    if is_counted(space):
        return lambda a: as_element(space, a)
    shape, dtype = space.shape, space.dtype
    if dtype == np.float32:
        return lambda a: a.astype(dtype).reshape(shape)
    assert isinstance(space, spaces.Box)  # acted() accepts nothing else
    low, high = space.low, space.high

    def act(a: Array) -> Array:
        """Return an action inside the bounds; rounding to float32 may have moved it outside."""
        action: Array = a.astype(dtype).reshape(shape)
        return np.clip(action, low, high, out=action)

    return act


def masker(described: Described) -> Callable[[Any, Mapping[str, Any]], Any]:
    """Return a function (observation, info) -> which actions are legal, bool [A]; all if none is told."""
    size, inside = described.mask_size, described.masks == "observation"

    def mask(observation: Any, info: Mapping[str, Any]) -> Any:
        told = (observation if inside else info).get(ACTION_MASK)
        return True if told is None else _mask(told, size)

    return mask


def _mask(told: Any, size: int) -> Array:
    """Return a mask; for several entries of an action it may be a tuple of one for each."""
    try:
        mask = (
            np.concatenate([np.ravel(part) for part in told]) if isinstance(told, tuple) else np.ravel(told)
        )
    except (TypeError, ValueError):
        mask = np.empty(0, object)
    if len(mask) != size or mask.dtype.kind not in "biuf" or not ((mask == 0) | (mask == 1)).all():
        raise Broken(
            f"expected {size} numbers, 1 for a legal action and 0 for any other, for {ACTION_MASK!r}, got "
            f"{told!r:.200}"
        )
    return mask.astype(bool)


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
