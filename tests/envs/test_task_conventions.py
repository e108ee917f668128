"""Families out of ``sample_tasks``/``set_task`` and out of benchmark objects: fakes of each kind."""

import pickle
import random
from collections import OrderedDict
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env
from pydantic import TypeAdapter, ValidationError
from stable_baselines3.common.env_checker import check_env as check_sb3

from rl2meta.envs.task_conventions import BenchmarkTasks, SetTaskEnvs


class Walk(gym.Env[Any, Any]):
    """Learn2learn's kind: a task comes with the constructor, and is drawn from NumPy's global generator."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    built = 0

    def __init__(self, scale: float = 1.0) -> None:
        type(self).built += 1
        self.scale = scale
        self.set_task(self.sample_tasks(1)[0])

    def sample_tasks(self, num_tasks: int) -> Any:
        goals = self.scale * np.random.uniform(-1, 1, (num_tasks, 2))
        return [{"goal": goal, "side": np.int64(1)} for goal in goals]

    def set_task(self, task: Any) -> None:
        self.task = task

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.at.copy(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.at.copy(), -float(np.abs(self.at - self.task["goal"]).sum()), False, False, {}


class Dice(Walk):
    """Tasks are numbers, drawn from Python's global generator."""

    def sample_tasks(self, num_tasks: int) -> Any:
        return [random.random() for _ in range(num_tasks)]

    def set_task(self, task: Any) -> None:
        self.task = {"goal": task}
        assert isinstance(task, float)


class Arms(Walk):
    """Garage's kind: drawn from the environment's own generator; cannot be reset without a task."""

    task: Any = None

    def __init__(self) -> None:
        pass

    def sample_tasks(self, num_tasks: int) -> Any:
        return self.np_random.normal(size=(num_tasks, 3))

    def set_task(self, task: Any) -> None:
        self.task = {"goal": np.asarray(task)[:2]}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        assert self.task is not None
        return super().reset(seed=seed)


class Named(Walk):
    """Its tasks are mappings with the one key that wrapped tasks have."""

    def sample_tasks(self, num_tasks: int) -> Any:
        return [{"task": (random.random(), "x")} for _ in range(num_tasks)]

    def set_task(self, task: Any) -> None:
        self.task = {"goal": task["task"][0]}


class Unseeded(Walk):
    def sample_tasks(self, num_tasks: int) -> Any:
        return [{"goal": np.random.default_rng().integers(2)} for _ in range(num_tasks)]


class Opaque(Walk):
    def sample_tasks(self, num_tasks: int) -> Any:
        return [{"goal": object()}]


class Empty(Walk):
    def __init__(self) -> None:
        pass

    def sample_tasks(self, num_tasks: int) -> Any:
        return []


class Pole(gym.Env[Any, Any]):
    """Knows nothing of tasks."""


def wrapped(steps: int) -> Any:
    return gym.wrappers.TimeLimit(Walk(), steps)


NOT_CALLABLE = 3
FAKES = ["Walk", "Dice", "Arms", "Named"]


def family(name: str, **settings: Any) -> SetTaskEnvs:
    return SetTaskEnvs(env=f"{__name__}:{name}", horizon=5, **settings)


def _tasks(of: Any, seed: int, split: str = "train", count: int = 6) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [of.sample(rng, split) for _ in range(count)]


def _equal(one: Any, other: Any) -> bool:
    return pickle.dumps(one) == pickle.dumps(other)


@pytest.mark.parametrize("name", FAKES)
def test_tasks_depend_on_the_generator_alone_and_leave_the_global_ones(name: str) -> None:
    np.random.seed(1)
    random.seed(1)
    expected = np.random.RandomState(1).random(), random.Random(1).random()
    first = _tasks(family(name), 0)
    assert (np.random.random(), random.random()) == expected
    again, others = _tasks(family(name), 0), _tasks(family(name), 1)  # global generators elsewhere by now
    assert [str(task) for task in first] == [str(task) for task in again]
    assert len({str(task) for task in first + others}) == 12


def test_making_an_environment_leaves_the_global_generators() -> None:
    walks = family("Walk")
    (task,) = _tasks(walks, 0, count=1)
    np.random.seed(1)
    walks.make_env(task)
    assert np.random.random() == np.random.RandomState(1).random()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Walk", {"goal": np.ndarray, "side": int}), ("Dice", {"task": float}), ("Arms", {"task": np.ndarray}),
     ("Named", {"task": dict})],
)  # fmt: skip
def test_tasks_are_plain_data(name: str, kind: dict[str, type]) -> None:
    (task,) = _tasks(family(name), 0, count=1)
    assert {key: type(value) for key, value in task.items()} == kind


@pytest.mark.parametrize("name", FAKES)
def test_an_environment_plays_the_task_and_takes_another(name: str) -> None:
    kept = family(name)
    one, other = _tasks(kept, 0, count=2)
    env, fresh = kept.make_env(one), kept.make_env(other)
    played: Any = env.unwrapped
    first = played.task
    for seed in (3, None, None):
        env.reset(seed=seed)
        assert played.task is first
    kept.set_task(env, other)
    assert str(played.task) == str(fresh.unwrapped.task) != str(first)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(env.reset(seed=4)[0], fresh.reset(seed=4)[0])


def test_methods_are_found_below_wrappers_and_arguments_given() -> None:
    walks = family("wrapped", kwargs={"steps": 2})
    (task,) = _tasks(walks, 0, count=1)
    env = walks.make_env(task)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(2)] == [False, True]
    (wide,) = _tasks(family("Walk", kwargs={"scale": 100.0}), 0, count=1)
    np.testing.assert_allclose(wide["goal"], 100 * task["goal"])


def test_a_gymnasium_id_is_cut_at_the_horizon() -> None:
    gym.register("rl2meta-test/Walk-v0", Walk, max_episode_steps=2)
    try:
        walks = SetTaskEnvs(env="rl2meta-test/Walk-v0", horizon=3)
        env = walks.make_env(walks.sample(np.random.default_rng(0), "test"))
        env.reset(seed=0)
        assert [env.step(0)[3] for _ in range(3)] == [False, False, True]
    finally:
        del gym.registry["rl2meta-test/Walk-v0"]


def test_a_pickled_family_carries_no_environment() -> None:
    walks, benchmark = family("Walk"), ml()
    walks.sample(np.random.default_rng(0), "train")
    benchmark.sample(np.random.default_rng(0), "train")
    built = Walk.built, Benchmark.built
    for kept in (walks, benchmark):
        copy = pickle.loads(pickle.dumps(kept))
        assert copy == kept and str(copy) == str(kept) and len(pickle.dumps(kept)) < 500
    assert built == (Walk.built, Benchmark.built)
    assert str(copy.sample(np.random.default_rng(1), "test")) == str(
        ml().sample(np.random.default_rng(1), "test")
    )


def test_families_survive_yaml() -> None:
    for kept in (family("Walk", kwargs={"scale": 2.0}), ml(seed=3)):
        kept.sample(np.random.default_rng(0), "train")  # what it keeps for itself must not be written
        written = yaml.safe_load(yaml.safe_dump(TypeAdapter(type(kept)).dump_python(kept)))
        assert type(kept)(**written) == kept


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("Unseeded", ValueError, "same task for the same seed"),
        ("Opaque", TypeError, "got a object in it"),
        ("Empty", TypeError, "list of one task"),
        ("Pole", TypeError, "with sample_tasks, got Pole"),
        ("dict", TypeError, "expected a gymnasium.Env"),
    ],
)
def test_what_breaks_the_convention_is_told(name: str, error: type[Exception], message: str) -> None:
    broken = SetTaskEnvs("builtins:dict", 5) if name == "dict" else family(name)
    with pytest.raises(error, match=message):
        broken.sample(np.random.default_rng(0), "train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Thing", "No module named 'no_such_module'"),
        (f"{__name__}:Wlk", "no attribute 'Wlk'"),
        (f"{__name__}:NOT_CALLABLE", "it is a int"),
        (":Thing", "module:Class"),
        ("CartPol-v1", "Did you mean.*CartPole"),
    ],
)
def test_names_that_lead_nowhere_are_faults_of_the_config(name: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SetTaskEnvs(name, 5)
    if ":" in name:
        with pytest.raises(ValidationError, match=message):
            BenchmarkTasks(name, 5)


class Task(NamedTuple):
    env_name: str
    data: bytes


class Reach(Walk):
    """Meta-World's kind: no arguments, and no reset before set_task."""

    def __init__(self) -> None:
        self.closed = False

    def set_task(self, task: Any) -> None:
        assert task.env_name == type(self).__name__.lower()
        self.task = {"goal": pickle.loads(task.data)}

    def close(self) -> None:
        self.closed = True


class Push(Reach):
    pass


class Benchmark:
    built = 0

    def __init__(self, names: Any = ("reach", "push"), *, seed: int) -> None:
        type(self).built += 1
        np.random.seed(seed)  # so did Meta-World's, once
        classes = OrderedDict(reach=Reach, push=Push)
        self.train_classes = OrderedDict((name, classes[name]) for name in names)
        self.test_classes = OrderedDict(reach=Reach)
        self.train_tasks = [self._task(name) for name in names for _ in range(20)]
        self.test_tasks = [self._task("reach") for _ in range(5)]

    def _task(self, name: str) -> Task:
        return Task(name, pickle.dumps(np.random.uniform(-1, 1, 2)))


class TrainOnly:
    def __init__(self, seed: int) -> None:
        self.train_classes, self.train_tasks = {"reach": Reach}, [Task("reach", pickle.dumps(0.5))]
        self.test_classes: dict[str, Any] = {}
        self.test_tasks: list[Task] = []


def ml(name: str = "Benchmark", **settings: Any) -> BenchmarkTasks:
    return BenchmarkTasks(benchmark=f"{__name__}:{name}", horizon=5, **settings)


def test_train_and_test_tasks_are_those_of_the_benchmark() -> None:
    np.random.seed(1)
    kept = ml(seed=7)
    train, test = _tasks(kept, 0, "train", 400), _tasks(kept, 0, "test", 100)
    assert np.random.random() == np.random.RandomState(1).random()
    assert {task["index"] for task in train} == set(range(40)) and {task["index"] for task in test} == set(
        range(5)
    )
    assert {task["env_name"] for task in train} == {"reach", "push"}
    lists = Benchmark(seed=7)
    for task in train[:20] + test[:5]:
        env: Any = kept.make_env(task)
        env.reset(seed=0)
        theirs = getattr(lists, f"{task['split']}_tasks")[task["index"]]
        np.testing.assert_array_equal(env.unwrapped.task["goal"], pickle.loads(theirs.data))
        assert type(env.unwrapped).__name__.lower() == task["env_name"] == theirs.env_name


def test_the_same_class_is_kept_and_another_one_replaces_it() -> None:
    kept = ml()
    tasks = [
        {"split": "train", "index": index, "env_name": "reach" if index < 20 else "push"}
        for index in (0, 1, 20)
    ]
    env: Any = kept.make_env(tasks[0])
    reach = env.unwrapped
    kept.set_task(env, tasks[1])
    assert env.unwrapped is reach and not reach.closed
    kept.set_task(env, tasks[2])
    assert reach.closed and type(env.unwrapped) is Push
    env.reset(seed=0)
    np.testing.assert_array_equal(env.unwrapped.task["goal"], kept.make_env(tasks[2]).unwrapped.task["goal"])  # type: ignore[attr-defined]


def test_arguments_reach_the_benchmark() -> None:
    tasks = _tasks(ml(kwargs={"names": ["push"]}), 0, count=30)
    assert {task["env_name"] for task in tasks} == {"push"}


def test_a_benchmark_that_breaks_the_convention_is_told() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="have test tasks, got none"):
        ml("TrainOnly").sample(rng, "test")
    with pytest.raises(TypeError, match="benchmark with train_tasks"):
        BenchmarkTasks("collections:Counter", 5).sample(rng, "train")
    with pytest.raises(ValueError, match="another list"):
        ml().make_env({"split": "train", "index": 0, "env_name": "push"})
    with pytest.raises(TypeError, match="that make_env made"):
        ml().set_task(Walk(), ml().sample(rng, "train"))


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.parametrize("kept", [family("Walk"), ml()], ids=["set_task", "benchmark"])
def test_what_is_made_passes_the_checkers(kept: Any) -> None:
    env = kept.make_env(kept.sample(np.random.default_rng(0), "train"))
    check_env(env, skip_render_check=True)
    check_sb3(env, skip_render_check=True)
