"""Laws in YAML: how one parameter of a task is drawn."""

import copy
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator

_Generator = np.random.Generator
_LARGEST = 1e300  # high - low is still a finite float


def _plain(law: Any) -> Any:
    """Return the checked ``law`` with sequences as lists, so that it is written as it was read."""
    if isinstance(law, list | tuple):
        return _bounds(law, "[low, high]")
    if isinstance(law, Mapping):
        kind, arguments = _named(law)
        return {kind: _CHECKS[kind](arguments)}
    if isinstance(law, bool | str):
        return law
    return _number(law, "a number, a string, a bool, [low, high] or {law: ...}")


Law = Annotated[Any, AfterValidator(_plain)]
"""A law in a config; it is checked when the config is read, and ``draw`` draws from it.

| in YAML | drawn |
|---|---|
| ``3``, ``0.5``, ``"sun"``, ``true`` | itself: a constant |
| ``[low, high]`` or ``{uniform: [low, high]}`` | a float from U[low, high] |
| ``{log_uniform: [low, high]}`` | a float whose logarithm is uniform, 0 < low <= high |
| ``{integers: [low, high]}`` | an int, ``low`` and ``high`` included |
| ``{choice: [...]}`` | one of the values; they may be of any type |
"""


def draw(law: Any, rng: _Generator) -> Any:
    """Return one value of ``law``, a checked ``Law``; numbers are Python's, never NumPy's.

    A constant takes nothing from ``rng``; every other law draws once.
    """
    if isinstance(law, list):
        return _DRAWS["uniform"](law, rng)
    if isinstance(law, dict):
        ((kind, arguments),) = law.items()
        return _DRAWS[kind](arguments, rng)
    return law


def draw_all(laws: Mapping[str, Any], rng: _Generator) -> dict[str, Any]:
    """Return a value for every name; draws are in sorted order: the order in the config does not matter."""
    return {name: draw(laws[name], rng) for name in sorted(laws)}


def _named(law: Mapping[Any, Any]) -> tuple[str, Any]:
    if len(law) != 1:
        raise ValueError(f"a law with one key, one of {', '.join(_CHECKS)}")
    ((kind, arguments),) = law.items()
    if kind not in _CHECKS:
        near = difflib.get_close_matches(str(kind), _CHECKS, n=1)
        did_you_mean = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"one of the laws {', '.join(_CHECKS)}{did_you_mean}")
    return kind, arguments


def _number(value: Any, expected: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(expected)
    if abs(value) > _LARGEST or math.isnan(value):
        raise ValueError("finite numbers")
    return value


def _bounds(bounds: Any, form: str) -> list[Any]:
    """Return [low, high]; ints stay ints."""
    expected = f"two numbers, {form} (or for one of several values {{choice: [...]}})"
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise ValueError(expected)
    low, high = (_number(bound, expected) for bound in bounds)
    if low > high:
        raise ValueError(f"low <= high in {form}")
    return [low, high]


def _uniform(bounds: Any) -> list[Any]:
    return _bounds(bounds, "{uniform: [low, high]}")


def _log_uniform(bounds: Any) -> list[Any]:
    checked = _bounds(bounds, "{log_uniform: [low, high]}")
    if checked[0] <= 0:
        raise ValueError("0 < low in {log_uniform: [low, high]}")
    return checked


def _integers(bounds: Any) -> list[Any]:
    checked = _bounds(bounds, "{integers: [low, high]}")
    if not all(isinstance(bound, int) and -(2**63) <= bound < 2**63 for bound in checked):
        raise ValueError("whole numbers of 64 bits in {integers: [low, high]}")
    return checked


def _choice(values: Any) -> list[Any]:
    if not isinstance(values, list | tuple) or not values:
        raise ValueError("at least one value in {choice: [...]}")
    return list(values)


def _draw_uniform(bounds: list[Any], rng: _Generator) -> float:
    return float(rng.uniform(*bounds))


def _draw_log_uniform(bounds: list[Any], rng: _Generator) -> float:
    low, high = map(float, bounds)
    return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)  # for rounding of exp


def _draw_integers(bounds: list[Any], rng: _Generator) -> int:
    low, high = bounds
    return int(rng.integers(low, high, endpoint=True))


def _draw_choice(values: list[Any], rng: _Generator) -> Any:
    return copy.deepcopy(values[rng.integers(len(values))])  # a change of the task must not change the law


_CHECKS: dict[str, Callable[[Any], list[Any]]] = {
    "uniform": _uniform,
    "log_uniform": _log_uniform,
    "integers": _integers,
    "choice": _choice,
}
_DRAWS: dict[str, Callable[[list[Any], _Generator], Any]] = {
    "uniform": _draw_uniform,
    "log_uniform": _draw_log_uniform,
    "integers": _draw_integers,
    "choice": _draw_choice,
}
