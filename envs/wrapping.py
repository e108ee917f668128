"""Wrappers in YAML: named ones, and any subclass of ``gymnasium.Wrapper`` by its import path."""

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, cast

import gymnasium as gym
from pydantic import AfterValidator, ValidationError

from rl2meta.envs.named_wrappers import NAMED, near

_Env = gym.Env[Any, Any]


def _plain(wrapper: Any) -> dict[str, Any]:
    """Return the checked ``wrapper``, written as it was read."""
    if not isinstance(wrapper, Mapping) or not isinstance(wrapper.get("name"), str):
        raise ValueError("{name: ..., and its arguments}, such as {name: drop_keys, keys: [mission]}")
    _maker(wrapper)
    return dict(wrapper)


Wrapper = Annotated[Any, AfterValidator(_plain)]
"""A wrapper in a config; it is checked when the config is read, and ``wrapped`` applies it.

| in YAML | what it does |
|---|---|
| ``{name: drop_keys, keys: [..]}`` | leaves these entries of a Dict out of the observations |
| ``{name: choose_keys, keys: [..]}`` | keeps only these; ``keys: image`` makes one entry the observation |
| ``{name: cast, dtype: float32}`` | another dtype; with ``what: actions`` the actions' |
| ``{name: flatten}`` | makes observations one vector |
| ``{name: rescale_action, low: -1, high: 1}`` | maps actions from [low, high] to the environment's bounds |
| ``{name: clip_action}`` | takes any finite action, and clips it to the environment's bounds |
| ``{name: one_reward, index: 0}`` | takes one entry of a reward vector |
| ``{name: frame_stack, size: 4}`` | the last observations side by side; images along the channels |
| ``{name: "module:Class", kwargs: {..}}`` | any subclass of ``gymnasium.Wrapper`` |
"""


def wrapped(env: _Env, wrappers: Sequence[Mapping[str, Any]]) -> _Env:
    """Return ``env`` inside the checked ``wrappers``, the first one innermost.

    Raises:
        ValueError: if a wrapper cannot be used with the environment; the message names the wrapper.
    """
    for wrapper in wrappers:
        make = _maker(wrapper)
        try:
            env = make(env)
        except Exception as error:  # of the wrapper, whose author is anybody
            raise ValueError(
                f"wrapper {wrapper['name']!r}: {error} (observations {env.observation_space}, actions "
                f"{env.action_space})"
            ) from error
    return env


def load(name: str) -> Callable[..., Any]:
    """Return the object that "module:name" names; it must be callable.

    Raises:
        ValueError: if there is no such object.
    """
    module, _, attribute = name.partition(":")
    try:
        loaded = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f'"module:Class", of a module that can be imported ({error})') from None
    if not callable(loaded):
        raise ValueError(f'"module:Class", of something callable (it is a {type(loaded).__name__})')
    return cast(Callable[..., Any], loaded)


def _maker(wrapper: Mapping[str, Any]) -> Callable[[_Env], _Env]:
    """Return a function that wraps an environment.

    Raises:
        ValueError: for names and arguments that do not exist.
    """
    name, arguments = wrapper["name"], {key: value for key, value in wrapper.items() if key != "name"}
    if ":" in name:
        return _imported(name, arguments)
    if name not in NAMED:
        raise ValueError(f'one of the wrappers {", ".join(NAMED)}, or "module:Class"{_meant(name)}')
    kind = NAMED[name]
    try:
        return kind(**{str(key): value for key, value in arguments.items()})
    except ValidationError as error:
        raise ValueError(f"for {name} {_words(error.errors()[0], kind)}") from None


def _imported(name: str, arguments: dict[str, Any]) -> Callable[[_Env], _Env]:
    for key in arguments.keys() - {"kwargs"}:
        raise ValueError(f"for {name} nothing beside kwargs{near(str(key), ['kwargs'])}")
    kwargs = arguments.get("kwargs", {})
    if not isinstance(kwargs, Mapping):
        raise ValueError(f"for {name} kwargs: {{argument: value}}")
    kind = load(name)
    if not (isinstance(kind, type) and issubclass(kind, gym.Wrapper)):
        raise ValueError(f"a subclass of gymnasium.Wrapper ({name} is none)")
    _refuse_arguments(kind, kwargs)
    return lambda env: kind(env, **copy.deepcopy(dict(kwargs)))  # a wrapper may change what it was given


def _refuse_arguments(kind: type[gym.Wrapper[Any, Any, Any, Any]], kwargs: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(kind)
    except ValueError:
        return  # it says nothing about its arguments
    try:
        signature.bind(None, **kwargs)
    except TypeError as error:
        known = list(signature.parameters)[1:]
        meant = "".join(near(str(key), known) for key in kwargs if key not in known)
        raise ValueError(
            f"arguments of {kind.__name__}, {', '.join(known) or 'none'} ({error}){meant}"
        ) from None


def _meant(name: str) -> str:
    """Return a suggestion for an unknown name."""
    module, _, last = name.rpartition(".")
    if module:
        return f' (did you mean "{module}:{last}"?)'
    if name in gym.wrappers.__all__:
        return f' (did you mean "gymnasium.wrappers:{name}"?)'
    return near(name, list(NAMED))


def _words(fault: Any, kind: Any) -> str:
    """Return one fault of arguments in words that stand after "expected for NAME"."""
    known = list(kind.__pydantic_fields__)
    key = str(fault["loc"][0])
    if fault["type"] == "unexpected_keyword_argument":
        return f"the arguments {', '.join(known)}{near(key, known)}" if known else "no argument"
    if fault["type"] in ("missing", "missing_argument"):
        return f"the argument {key}"
    return f"{key}: {fault['msg'].removeprefix('Input should be ')}"
