"""Whether two environments hold the same values: then a task makes no difference to them."""

from collections import deque
from enum import Enum
from types import BuiltinFunctionType, FunctionType, ModuleType, NoneType
from typing import Any

import gymnasium as gym
import numpy as np


class _Plain:
    """An object of nothing but attributes."""


_VALUES = (bool, int, float, complex, str, bytes, NoneType, np.generic, np.dtype)
_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, Enum, gym.Space)


def same_values(some: Any, others: Any) -> bool:
    """Return whether two objects certainly hold equal values, with all that they refer to.

    False also means that it is not known: values of compiled objects, and what functions refer to, cannot be
    seen.
    """
    return _same(some, others, set())


def _same(a: Any, b: Any, met: set[tuple[int, int]]) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, _VALUES):
        return bool(a == b or (a != a and b != b))  # NaN is like NaN
    if isinstance(a, _SHARED) and (a is b or not isinstance(a, gym.Space)):
        return a is b
    if (id(a), id(b)) in met:
        return True
    met.add((id(a), id(b)))
    return _same_parts(a, b, met)


def _same_parts(a: Any, b: Any, met: set[tuple[int, int]]) -> bool:
    if isinstance(a, np.ndarray):
        return bool(a.dtype.kind in "biufc" and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    if isinstance(a, np.random.Generator):
        return _same(a.bit_generator.state, b.bit_generator.state, met)
    if type(a) is dict:
        return a.keys() == b.keys() and all(_same(a[key], b[key], met) for key in a)
    if type(a) in (list, tuple, deque):
        return len(a) == len(b) and all(_same(x, y, met) for x, y in zip(a, b, strict=True))
    if a is b or type(a).__basicsize__ != _Plain.__basicsize__:
        return False  # one object for both says nothing of either; others hold what Python does not see
    return _same(vars(a), vars(b), met)
