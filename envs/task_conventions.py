"""Families of tasks from environments that define their own tasks, by one of two conventions."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property, partial
from typing import Annotated, Any, cast

import gymnasium as gym
import numpy as np
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from rl2meta.envs.gym_tasks import make, registered
from rl2meta.envs.locomotion import quiet_mujoco
from rl2meta.envs.wrapping import Wrapper, load, wrapped

_STRICT = ConfigDict(extra="forbid", strict=True)
_Horizon = Annotated[int, Field(ge=1, le=10**6, description="maximum number of steps in an episode")]
_Kwargs = Annotated[
    dict[str, Any], Field(description="arguments of the class or function, the same for every task")
]
_Wrappers = Annotated[
    list[Wrapper], Field(description="applied after the task is set, the first one innermost")
]
_Env = gym.Env[Any, Any]


def _importable(name: str) -> str:
    load(name)  # here: a wrong name must be an error of the config, not of a worker
    return name


def _makeable(name: str) -> str:
    _maker(name, 1)
    return name


@dataclass(frozen=True, config=_STRICT)
class SetTaskEnvs:
    """Environments with ``sample_tasks(num_tasks)`` and ``set_task(task)``, as in learn2learn and garage.

    The methods may belong to a wrapper or to the environment inside; it must be a Gymnasium environment. A
    mapping is used as a task without a change, any other value t becomes {"task": t}; NumPy scalars become
    Python numbers, and tuples become lists. ``sample_tasks`` takes neither a seed nor a split. So during a
    draw the global generators of NumPy and ``random`` are seeded (and restored afterwards), and the
    environment is seeded by ``reset(seed=...)``. Train and test tasks come from the same law.

    This seeds only the draw of tasks: if resets or steps of an environment use a global generator, their
    random numbers do not depend on our seeds.

    Raises:
        pydantic.ValidationError: for a name that cannot be imported, or numbers out of range.
    """

    env: Annotated[
        str,
        AfterValidator(_makeable),
        Field(description='"module:Class", "module:function" that returns an environment, or a Gymnasium id'),
    ]
    horizon: _Horizon
    kwargs: _Kwargs = Field(default={})
    wrappers: _Wrappers = Field(default=[])

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Return one task of the environment's law; ``split`` changes nothing.

        Raises:
            TypeError: if the environment lacks one of the methods, or a task is not plain data.
            ValueError: if ``sample_tasks`` uses random numbers that neither ``reset(seed=...)`` nor the
                global generators of NumPy and ``random`` decide.
        """
        if not self._steady:
            raise ValueError(
                f"expected {self.env}.sample_tasks to give the same task for the same seed, got two: let it "
                "draw from self.np_random, or from NumPy's or random's global generator"
            )
        return self._draw(int(rng.integers(2**32)))

    def make_env(self, task: Mapping[str, Any]) -> _Env:
        """Return a new environment with the task set, inside the wrappers."""
        env = self._new()
        self.set_task(env, task)
        return wrapped(env, self.wrappers)

    def set_task(self, env: _Env, task: Mapping[str, Any]) -> None:
        """Call the environment's ``set_task`` with a task that its ``sample_tasks`` returned."""
        _method(env, "set_task")(task["task"] if task.keys() == {"task"} else task)

    def __getstate__(self) -> dict[str, Any]:
        return _settings(self)

    @cached_property
    def _sampler(self) -> _Env:
        return self._new()

    @cached_property
    def _steady(self) -> bool:
        """Whether a seed decides the task; tested on eight seeds, as two tasks may be equal by chance."""
        once, again = ([self._draw(seed) for seed in range(8)] for _ in range(2))
        return _same(once, again)

    def _new(self) -> _Env:
        maker = _maker(self.env, self.horizon)
        with _seeded_globals(0), quiet_mujoco():  # a constructor may draw a first task
            env = maker(**self.kwargs)
        if not isinstance(env, gym.Env):
            raise TypeError(f"expected a gymnasium.Env of {self.env}, got {type(env).__name__}")
        return env

    def _draw(self, seed: int) -> dict[str, Any]:
        env = self._sampler
        sample_tasks, set_task = _method(env, "sample_tasks"), _method(env, "set_task")
        with _seeded_globals(seed):
            set_task(_first(sample_tasks(1)))  # any task: some environments cannot reset without one
            env.reset(seed=seed)
            task = _plain(_first(sample_tasks(1)))
        return dict(task) if isinstance(task, Mapping) and task.keys() != {"task"} else {"task": task}


@dataclass(frozen=True, config=_STRICT)
class BenchmarkTasks:
    """The tasks of a benchmark object that follows Meta-World's convention, such as ML1, ML10 and ML45.

    The benchmark has ``train_classes`` and ``test_classes`` (name -> class of environment), and
    ``train_tasks`` and ``test_tasks`` (each task has ``env_name``; nothing else of it is used here). An
    environment has ``set_task``. Every process builds ``benchmark(**kwargs, seed=seed)``, and the seed must
    decide its tasks: one of our tasks is {"split", "index", "env_name"}, an index into its lists. Test tasks
    are the tasks that the benchmark holds out. Meta-World's environments allow at most 500 steps.

    Raises:
        pydantic.ValidationError: for a name that cannot be imported, or numbers out of range.
    """

    benchmark: Annotated[
        str, AfterValidator(_importable), Field(description='"module:Class", for example "metaworld:ML1"')
    ]
    horizon: _Horizon
    kwargs: _Kwargs = Field(default={})
    seed: Annotated[int, Field(ge=0, lt=2**32, description="seed of the benchmark's task lists")] = 0
    wrappers: _Wrappers = Field(default=[])

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Return one task of the split's list, each with the same probability.

        Raises:
            ValueError: if the benchmark has no tasks for the split.
        """
        tasks = self._tasks(split)
        index = int(rng.integers(len(tasks)))
        return {"split": split, "index": index, "env_name": str(tasks[index].env_name)}

    def make_env(self, task: Mapping[str, Any]) -> _Env:
        """Return an environment of the task's class with the task set."""
        return _OneOfSeveral(task["env_name"], self._wrapped(task))

    def set_task(self, env: _Env, task: Mapping[str, Any]) -> None:
        """Set another task in an environment of ``make_env``; a task of another class builds a new one."""
        if not isinstance(env, _OneOfSeveral):
            raise TypeError(f"expected an environment that make_env made, got {type(env).__name__}")
        if env.name != task["env_name"]:
            env.replace(task["env_name"], self._wrapped(task))
        else:
            _method(env.env, "set_task")(self._task(task))

    def __getstate__(self) -> dict[str, Any]:
        return _settings(self)

    @cached_property
    def _built(self) -> Any:
        benchmark = load(self.benchmark)
        with _seeded_globals(self.seed), quiet_mujoco():
            return benchmark(**self.kwargs, seed=self.seed)

    def _wrapped(self, task: Mapping[str, Any]) -> _Env:
        """Return a new environment with the task set: spaces, which wrappers read, may depend on a task."""
        env = self._new(task)
        _method(env, "set_task")(self._task(task))
        return wrapped(env, self.wrappers)

    def _new(self, task: Mapping[str, Any]) -> _Env:
        classes = _attribute(self._built, f"{task['split']}_classes", self.benchmark)
        with _seeded_globals(self.seed), quiet_mujoco():
            env = classes[task["env_name"]]()
        if not isinstance(env, gym.Env):
            raise TypeError(f"expected a gymnasium.Env of {task['env_name']}, got {type(env).__name__}")
        return env

    def _tasks(self, split: str) -> Sequence[Any]:
        tasks: Sequence[Any] = _attribute(self._built, f"{split}_tasks", self.benchmark)
        if not tasks:
            raise ValueError(
                f"expected {self.benchmark} to have {split} tasks, got none: choose another benchmark"
            )
        return tasks

    def _task(self, task: Mapping[str, Any]) -> Any:
        tasks, index = self._tasks(task["split"]), task["index"]
        if index >= len(tasks) or tasks[index].env_name != task["env_name"]:
            raise ValueError(
                f"expected {task['env_name']!r} as number {index} of {self.benchmark}.{task['split']}_tasks, "
                "got another list: is it the same version, and does seed= decide its tasks?"
            )
        return tasks[index]


class _OneOfSeveral(gym.Wrapper[Any, Any, Any, Any]):
    """An environment that can be replaced by one of another class; only one exists, to save memory."""

    def __init__(self, name: str, env: _Env) -> None:
        super().__init__(env)
        self.name = name

    def replace(self, name: str, env: _Env) -> None:
        """Close the environment inside and replace it."""
        self.env.close()
        self.name, self.env = name, env


@contextmanager
def _seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of NumPy and ``random``, and restore their states at the end."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _maker(name: str, horizon: int) -> Callable[..., Any]:
    """Return a function that makes the environments of a "module:Class" or of a Gymnasium id."""
    if ":" in name and name.rpartition(":")[2].isidentifier():  # an id has a version, "module:Name-v0"
        return load(name)
    registered(name)
    return partial(make, name, max_episode_steps=horizon)


def _method(env: _Env, name: str) -> Callable[..., Any]:
    try:
        return cast(Callable[..., Any], env.get_wrapper_attr(name))
    except AttributeError:
        kind = type(env.unwrapped).__name__
        raise TypeError(f"expected an environment with {name}, got {kind}, which has none") from None


def _attribute(benchmark: Any, name: str, where: str) -> Any:
    try:
        return getattr(benchmark, name)
    except AttributeError:
        raise TypeError(f"expected a benchmark with {name}, got {where}, which has none") from None


def _first(tasks: Any) -> Any:
    try:
        return tasks[0]
    except (TypeError, LookupError):
        raise TypeError(f"expected sample_tasks(1) to return a list of one task, got {tasks!r}") from None


def _plain(value: Any) -> Any:
    """Return a task as plain data that can be saved in a file."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str | np.ndarray):
        return value
    raise TypeError(
        f"expected a task of numbers, strings, bools, None, NumPy arrays, lists and mappings, got a "
        f"{type(value).__name__} in it: let sample_tasks return its numbers, and set_task take them"
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return np.array_equal(one, other)


def _settings(family: Any) -> dict[str, Any]:
    """Return only the fields: objects that were built for sampling are not sent to the workers."""
    return {field.name: getattr(family, field.name) for field in fields(family)}
