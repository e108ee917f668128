"""The wrappers that a config names without a module."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces, wrappers
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True)
_Env = gym.Env[Any, Any]
_Keys = Annotated[list[str], Field(min_length=1)]
_Dtype = Literal["float32", "float64", "uint8", "int8", "int16", "int32", "int64"]


@dataclass(frozen=True, config=_STRICT)
class _DropKeys:
    keys: _Keys

    def __call__(self, env: _Env) -> _Env:
        known = _keys_of(env, self.keys)
        kept = [key for key in known if key not in self.keys]
        if not kept:
            raise ValueError(f"expected a key that stays, got all of {known} to drop")
        return wrappers.FilterObservation(env, kept)


@dataclass(frozen=True, config=_STRICT)
class _ChooseKeys:
    keys: str | _Keys

    def __call__(self, env: _Env) -> _Env:
        if isinstance(self.keys, list):
            known = _keys_of(env, self.keys)
            return wrappers.FilterObservation(env, [key for key in known if key in self.keys])
        _keys_of(env, [self.keys])
        inside = cast(spaces.Dict, env.observation_space)[self.keys]
        return wrappers.TransformObservation(env, partial(_entry, self.keys), inside)


@dataclass(frozen=True, config=_STRICT)
class _Cast:
    dtype: _Dtype
    what: Literal["observations", "actions"] = "observations"

    def __call__(self, env: _Env) -> _Env:
        if self.what == "actions":
            inside = _box(env.action_space)
            return wrappers.TransformAction(env, partial(_as_element, inside), _cast(inside, self.dtype))
        if isinstance(seen := env.observation_space, spaces.Discrete):
            last = seen.start + seen.n - 1
            seen = spaces.Box(float(seen.start), float(last), (1,), np.float64)
        if isinstance(seen, spaces.Box):  # Gymnasium's own wrapper warns of the precision of bounds
            outside = _cast(seen, self.dtype)
            return wrappers.TransformObservation(env, partial(_as_element, outside), outside)
        return wrappers.DtypeObservation(env, np.dtype(self.dtype).type)


@dataclass(frozen=True, config=_STRICT)
class _Flatten:
    def __call__(self, env: _Env) -> _Env:
        return wrappers.FlattenObservation(env)


@dataclass(frozen=True, config=_STRICT)
class _RescaleAction:
    low: float = -1.0
    high: float = 1.0

    def __call__(self, env: _Env) -> _Env:
        inside = _box(env.action_space)
        if not inside.is_bounded():
            raise ValueError(f"expected actions with finite bounds, got {inside}; or use clip_action")
        number = inside.dtype.type
        return wrappers.RescaleAction(env, number(self.low), number(self.high))


@dataclass(frozen=True, config=_STRICT)
class _ClipAction:
    def __call__(self, env: _Env) -> _Env:
        _box(env.action_space)
        return wrappers.ClipAction(env)


@dataclass(frozen=True, config=_STRICT)
class _OneReward:
    index: Annotated[int, Field(ge=0)]

    def __call__(self, env: _Env) -> _Env:
        return wrappers.TransformReward(env, partial(_one_of, self.index))


@dataclass(frozen=True, config=_STRICT)
class _FrameStack:
    size: Annotated[int, Field(ge=1, le=1000)]
    padding: Literal["reset", "zero"] = "reset"

    def __call__(self, env: _Env) -> _Env:
        stacked = wrappers.FrameStackObservation(env, self.size, padding_type=self.padding)
        inside = env.observation_space
        if not isinstance(inside, spaces.Box) or len(inside.shape) != 3:
            return stacked
        outside = spaces.Box(
            _joined(np.stack([inside.low] * self.size)),
            _joined(np.stack([inside.high] * self.size)),
            dtype=cast(Any, inside.dtype),
        )
        return wrappers.TransformObservation(stacked, _joined, outside)


NAMED: dict[str, Callable[..., Callable[[_Env], _Env]]] = {
    "drop_keys": _DropKeys,
    "choose_keys": _ChooseKeys,
    "cast": _Cast,
    "flatten": _Flatten,
    "rescale_action": _RescaleAction,
    "clip_action": _ClipAction,
    "one_reward": _OneReward,
    "frame_stack": _FrameStack,
}
"""A class for each name; its instance, made with the arguments in the config, wraps an environment."""


def near(name: str, known: Sequence[str]) -> str:
    """Return " (did you mean ...?)" for the name in ``known`` that is most like ``name``, or nothing."""
    found = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _keys_of(env: _Env, wanted: Sequence[str]) -> list[str]:
    """Return the keys of the observations; all ``wanted`` ones must be among them."""
    space = env.observation_space
    if not isinstance(space, spaces.Dict):
        raise ValueError(f"expected a Dict of observations, got {type(space).__name__}")
    known = list(space.spaces)
    for key in wanted:
        if key not in known:
            raise ValueError(f"expected a key of the observations, {known}, got {key!r}{near(key, known)}")
    return known


def _box(space: gym.Space[Any]) -> spaces.Box:
    if not isinstance(space, spaces.Box):
        raise ValueError(f"expected a Box of actions, got {space}")
    return space


def _cast(box: spaces.Box, dtype: str) -> spaces.Box:
    """Return a Box with another dtype; whole numbers are bounded by their dtype, too."""
    kind, low, high = np.dtype(dtype), box.low, box.high
    if kind.kind != "f":
        least, most = np.iinfo(kind).min, np.iinfo(kind).max
        low, high = np.clip(np.ceil(low), least, most), np.clip(np.floor(high), least, most)
    return spaces.Box(low.astype(kind), high.astype(kind), dtype=kind.type)


def _as_element(box: spaces.Box, element: Any) -> NDArray[Any]:
    """Return a box's element, given in another dtype; whole numbers are rounded and kept in bounds."""
    if np.issubdtype(cast(Any, box.dtype), np.integer):
        element = np.clip(np.rint(element), box.low, box.high)
    return np.asarray(element, box.dtype).reshape(box.shape)


def _entry(key: str, observation: Mapping[str, Any]) -> Any:
    return observation[key]


def _one_of(index: int, reward: Any) -> float:
    rewards = np.asarray(reward)  # [rewards]
    if rewards.ndim != 1 or index >= len(rewards):
        raise ValueError(f"expected a vector of more than {index} rewards for one_reward, got {reward!r:.80}")
    return float(rewards[index])


def _joined(images: Any) -> NDArray[Any]:
    """Join images [n, height, width, channels] along their channels, or [n, channels, height, width]."""
    stack = np.asarray(images)
    channels = 0 if stack.shape[1] <= stack.shape[-1] else 2  # the smaller axis, as agents read images
    return np.concatenate(list(stack), axis=channels)
