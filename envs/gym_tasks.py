"""Tasks from any Gymnasium environment: a config varies its parameters, without code."""

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
from rl2meta.envs.wrapping import Wrapper, wrapped

_STRICT = ConfigDict(extra="forbid", strict=True)
_FROM_THE_ID: Any = None  # a validator replaces it, so the field is always an int
_OURS = {"id", "max_episode_steps", "disable_env_checker"}  # arguments of gym.make that are not kwargs
_SEEDS = 2**31  # of an environment; some libraries do not accept more
_LAWS = "; a constant, [low, high], {log_uniform: ..}, {integers: ..} or {choice: ..}"


@dataclass(frozen=True, config=_STRICT)
class GymnasiumTasks:
    """The environments of one Gymnasium id, with parameters drawn for every task.

    A task is {"kwargs": {...}, "attributes": {...}, "options": {...}, "seed": ...}, without the parts that do
    not vary. ``gym.make`` gets the kwargs; then the attributes are set on ``env.unwrapped``; every reset gets
    the options as ``reset(options={"task": {...}})``. Train and test tasks come from the same laws, and the
    tasks are not divided between them: laws with few values have few tasks, and training sees them all.

    With ``vary_seed`` every reset gets the task's seed as ``reset(seed=...)``: the task is the level that the
    seed makes, and random numbers of later steps are the same in every episode of the trial, too. Seeds of
    train tasks are even, those of test tasks odd, so no level is in both. They are uniform in [0, 2³¹).

    The ``wrappers`` are applied after the task is set, the first one innermost.

    Only the attribute itself is set. Values that a constructor computed from it do not change (CartPole does
    not compute ``polemass_length`` and ``total_mass`` again for a new ``length`` or ``masspole``). If that
    matters, vary a kwarg, or an attribute that every step reads.

    Raises:
        pydantic.ValidationError: for an id that Gymnasium does not know, an id registered without a maximum
            number of steps if there is no ``horizon``, wrong laws, a parameter given twice, or if nothing
            varies.
    """

    id: Annotated[str, Field(description='a Gymnasium id: "CartPole-v1", "my_package:MyEnv-v0"')]
    horizon: Annotated[
        int,
        Field(
            ge=1,
            le=10**6,
            validate_default=True,
            description="maximum number of steps in an episode; null: the number registered with the id",
        ),
    ] = _FROM_THE_ID
    kwargs: Annotated[
        dict[str, Any], Field(description="arguments of the environment, the same in every task")
    ] = Field(default={})
    vary_kwargs: Annotated[
        dict[str, Law], Field(description=f"arguments of the environment that differ between tasks{_LAWS}")
    ] = Field(default={})
    vary_attributes: Annotated[
        dict[str, Law],
        Field(description="attributes of the environment to set; laws as above; a.b is attribute b of a"),
    ] = Field(default={})
    vary_options: Annotated[
        dict[str, Law], Field(description="values that every reset gets as options['task']; laws as above")
    ] = Field(default={})

    wrappers: Annotated[
        list[Wrapper],
        Field(description='{name: drop_keys, keys: [..]} and others, {name: "module:Class", kwargs: {..}}'),
    ] = Field(default=[])
    vary_seed: Annotated[
        bool, Field(description="whether every reset of a trial gets the task's own seed: a task is a level")
    ] = False

    @field_validator("id")
    @classmethod
    def _registered(cls, id: str) -> str:
        registered(id)
        return id

    @field_validator("horizon", mode="before")
    @classmethod
    def _resolved(cls, horizon: Any, info: ValidationInfo) -> Any:
        if horizon is not None or "id" not in info.data:
            return 1 if horizon is None else horizon  # a wrong id is already reported
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
        if not (self.vary_kwargs or self.vary_attributes or self.vary_options or self.vary_seed):
            raise ValueError(
                "something in vary_kwargs, vary_attributes or vary_options, or vary_seed: true; without it "
                "all tasks are equal"
            )
        if twice := self.kwargs.keys() & self.vary_kwargs.keys():
            raise ValueError(f"a parameter in kwargs or in vary_kwargs, got {sorted(twice)} in both")
        return self

    def __str__(self) -> str:
        """Return the settings as text, without the empty ones."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = ", ".join(f"{name}={value!r}" for name, value in said.items() if value not in ({}, [], False))
        return f"{type(self).__name__}({shown})"

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Return one task; ``split`` changes only the seed."""
        laws = {"kwargs": self.vary_kwargs, "attributes": self.vary_attributes, "options": self.vary_options}
        task: dict[str, Any] = {part: draw_all(varied, rng) for part, varied in laws.items() if varied}
        if self.vary_seed:
            task["seed"] = 2 * int(rng.integers(_SEEDS // 2)) + (split == "test")
        return task

    def make_env(self, task: Mapping[str, Any], render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Return the environment that ``gym.make`` returns, with the task set, inside the wrappers.

        Args:
            task: as ``sample`` draws it.
            render_mode: of the environment; None for none, or for that in ``kwargs``.

        Raises:
            ValueError: if the environment does not have an attribute, the attribute cannot be set, or a
                wrapper cannot be used with the environment.
        """
        shown = {} if render_mode is None else {"render_mode": render_mode}
        kwargs = {**self.kwargs, **task.get("kwargs", {}), **shown}
        env = make(self.id, max_episode_steps=self.horizon, **kwargs)
        for name, value in task.get("attributes", {}).items():
            _set(env.unwrapped, name, value)
        if "options" in task:
            env = _TaskOptions(env, task["options"])
        if "seed" in task:
            env = _TaskSeed(env, task["seed"])
        return wrapped(env, self.wrappers)


def registered(id: str) -> EnvSpec:
    """Return what is registered under a Gymnasium id; imports the module first in an id "module:Name-v0".

    Raises:
        ValueError: if there is no such module or id; the message names similar ids.
    """
    module, _, name = id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        do = "; is its package installed?" if isinstance(error, ImportError) else ""
        raise ValueError(f"a Gymnasium id, of a package that can be imported ({error}{do})") from None


def make(id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Return ``gym.make(id, **kwargs)`` without Gymnasium's checks of steps and without MuJoCo's log file."""
    entry = registered(id).entry_point
    if isinstance(entry, str):
        importlib.import_module(entry.partition(":")[0])  # shows whether MuJoCo is used
    with quiet_mujoco():
        return gym.make(id, disable_env_checker=True, **kwargs)


class _TaskOptions(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Adds the task to the options of every reset."""

    def __init__(self, env: gym.Env[Any, Any], task: Mapping[str, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, task=task)
        gym.Wrapper.__init__(self, env)
        self._task = task

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options={**(options or {}), "task": dict(self._task)})


class _TaskSeed(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Gives the task's seed to every reset, in place of any other."""

    def __init__(self, env: gym.Env[Any, Any], seed: int) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, seed=seed)
        gym.Wrapper.__init__(self, env)
        self._seed = seed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=self._seed, options=options)


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
