"""Tasks out of any Gymnasium environment, by varying its parameters: a config, no code."""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import fields
from functools import reduce
from typing import Annotated, Any, Self

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from rl2meta.envs.laws import Law, draw_all
from rl2meta.envs.locomotion import quiet_mujoco

_STRICT = ConfigDict(extra="forbid", strict=True)
_FROM_THE_ID: Any = None  # replaced before anyone sees it, so that the field is an int
_OURS = {"id", "max_episode_steps", "disable_env_checker"}  # arguments of gym.make that are no kwargs
_LAWS = "; a constant, [low, high] or {log_uniform: ..}, {integers: ..}, {choice: ..}"


@dataclass(frozen=True, config=_STRICT)
class GymnasiumTasks:
    """The environments of one Gymnasium id, whose parameters are drawn anew for every task.

    A task is {"kwargs": {...}, "attributes": {...}, "options": {...}}, those left out that nothing varies:
    ``gym.make`` gets the kwargs; the attributes are then set on ``env.unwrapped``; the options come as
    ``reset(options={"task": {...}})`` with every reset. Train and test tasks are draws of the same laws: no
    partition is made, so laws with few values have few tasks, and training meets them all.

    An attribute is set and nothing else: what a constructor computed from it stays as it was (CartPole's
    ``polemass_length`` and ``total_mass`` know nothing of a new ``length`` or ``masspole``). Where that
    matters, vary a kwarg, or an attribute that the steps read.

    Raises:
        pydantic.ValidationError: for an id that Gymnasium does not know, an id without a length of episodes
            where no ``horizon`` is given, faulty laws, a parameter given twice, and where nothing varies.
    """

    id: Annotated[str, Field(description='a Gymnasium id: "CartPole-v1", "my_package:MyEnv-v0"')]
    horizon: Annotated[
        int,
        Field(
            ge=1,
            le=10**6,
            validate_default=True,
            description="steps in an episode, at most; null for as registered with the id",
        ),
    ] = _FROM_THE_ID
    kwargs: Annotated[
        dict[str, Any], Field(description="arguments of the environment, the same in every task")
    ] = Field(default={})
    vary_kwargs: Annotated[
        dict[str, Law], Field(description=f"arguments of the environment, drawn for every task{_LAWS}")
    ] = Field(default={})
    vary_attributes: Annotated[
        dict[str, Law],
        Field(description="attributes to set once it is made, by laws too; dots lead into attributes"),
    ] = Field(default={})
    vary_options: Annotated[
        dict[str, Law], Field(description="what every reset gets as options['task'], by laws too")
    ] = Field(default={})

    @field_validator("id")
    @classmethod
    def _registered(cls, id: str) -> str:
        registered(id)
        return id

    @field_validator("horizon", mode="before")
    @classmethod
    def _resolved(cls, horizon: Any, info: ValidationInfo) -> Any:
        if horizon is not None or "id" not in info.data:
            return 1 if horizon is None else horizon  # a faulty id is one fault, and is told as such
        steps = registered(info.data["id"]).max_episode_steps
        if steps is None:
            raise ValueError(f"a number of steps: {info.data['id']} is registered without max_episode_steps")
        return steps

    @field_validator("kwargs", "vary_kwargs")
    @classmethod
    def _for_the_constructor(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        if taken := _OURS & kwargs.keys():
            which = ", ".join(sorted(taken))
            raise ValueError(
                f"arguments of the environment, without {which} (an episode's length is horizon)"
            )
        return kwargs

    @model_validator(mode="after")
    def _varied(self) -> Self:
        if not (self.vary_kwargs or self.vary_attributes or self.vary_options):
            raise ValueError(
                "something in vary_kwargs, vary_attributes or vary_options: else all tasks are one"
            )
        if twice := self.kwargs.keys() & self.vary_kwargs.keys():
            raise ValueError(f"a parameter in kwargs or in vary_kwargs, got {sorted(twice)} in both")
        return self

    def __str__(self) -> str:
        """Return what a person set, without what is left empty."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = ", ".join(f"{name}={value!r}" for name, value in said.items() if value != {})
        return f"{type(self).__name__}({shown})"

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, dict[str, Any]]:
        """Return one task; ``split`` changes nothing."""
        laws = {"kwargs": self.vary_kwargs, "attributes": self.vary_attributes, "options": self.vary_options}
        return {part: draw_all(varied, rng) for part, varied in laws.items() if varied}

    def make_env(self, task: Mapping[str, Mapping[str, Any]]) -> gym.Env[Any, Any]:
        """Return the environment as ``gym.make`` wraps it, set to the task.

        Raises:
            ValueError: for an attribute that the environment does not have, or that cannot be set.
        """
        kwargs = {**self.kwargs, **task.get("kwargs", {})}
        env = make(self.id, max_episode_steps=self.horizon, **kwargs)
        for name, value in task.get("attributes", {}).items():
            _set(env.unwrapped, name, value)
        return _TaskOptions(env, task["options"]) if "options" in task else env


def registered(id: str) -> EnvSpec:
    """Return what is registered under a Gymnasium id, once a module that stands before a colon is imported.

    Raises:
        ValueError: if there is no such module or id; says what Gymnasium knows that is near.
    """
    module, _, name = id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"a Gymnasium id, of a package that can be imported ({error})") from None


def make(id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Return ``gym.make(id, **kwargs)`` without its checks of every step, and without MuJoCo's log file."""
    entry = registered(id).entry_point
    if isinstance(entry, str):
        importlib.import_module(entry.partition(":")[0])  # only then is it known whether MuJoCo takes part
    with quiet_mujoco():
        return gym.make(id, disable_env_checker=True, **kwargs)


class _TaskOptions(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Gives every reset the task, beside the options that it gets."""

    def __init__(self, env: gym.Env[Any, Any], task: Mapping[str, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, task=task)
        gym.Wrapper.__init__(self, env)
        self._task = task

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options={**(options or {}), "task": dict(self._task)})


def _set(env: Any, name: str, value: Any) -> None:
    *path, last = name.split(".")
    owner = reduce(_attribute, path, env)
    _attribute(owner, last)  # a misspelt name must not become a new attribute
    try:
        setattr(owner, last, value)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"expected an attribute {name!r} to set to {value!r}, got: {error}") from error


def _attribute(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        known = [other for other in dir(owner) if not other.startswith("_")]
        near = difflib.get_close_matches(name, known, n=3)
        did_you_mean = (
            f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}"
        )
        raise ValueError(
            f"expected an attribute of {type(owner).__name__}, got {name!r}; {did_you_mean}"
        ) from None
