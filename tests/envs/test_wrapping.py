"""Wrappers in YAML: what each does, that tasks stay inside them, and which configs are refused."""

import pickle
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from pydantic import TypeAdapter, ValidationError

from rl2meta.envs.gym_tasks import GymnasiumTasks
from rl2meta.envs.task_conventions import BenchmarkTasks, SetTaskEnvs
from rl2meta.envs.wrapping import Wrapper, wrapped
from rl2meta.errors import UserError
from rl2meta.experiments.components import read_config
from rl2meta.experiments.trainings import train

LEVEL = "rl2meta-test/Level-v0"
CHECKER = TypeAdapter(Wrapper)


class Level(gym.Env[Any, Any]):
    """A level of the seed, observed with a text; a reward vector, and actions from 100 to 1000."""

    observation_space = spaces.Dict(
        {
            "cell": spaces.Box(0, 2**31, (1,), np.float64),
            "mission": spaces.Text(20),
            "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
        }
    )
    action_space = spaces.Box(100.0, 1000.0, (2,), np.float64)

    def __init__(self) -> None:
        self.goal, self.seeds, self.taken = 0, [], None
        super().__init__()

    def sample_tasks(self, count: int) -> list[int]:
        return [int(goal) for goal in self.np_random.integers(10**6, size=count)]

    def set_task(self, task: int) -> None:
        self.goal = task

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.start = int(self.np_random.integers(2**31))
        self.steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        assert action in self.action_space, action
        self.taken, self.steps = action, self.steps + 1
        return self._seen(), np.array([self.goal, -1.5]), False, self.steps == 4, {}

    def _seen(self) -> dict[str, Any]:
        image = np.full((8, 8, 3), self.steps, np.uint8)
        return {"cell": np.array([self.start], np.float64), "mission": "go", "image": image}


class Counts(gym.Env[Any, Any]):
    """Whole numbers as actions and observations."""

    observation_space = spaces.Discrete(5, start=2)
    action_space = spaces.Box(-3, 3, (2,), np.int64)
    taken: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return 4, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action in self.action_space, action
        self.taken = action
        return 3, 0.0, False, False, {}


class Plus(gym.ObservationWrapper[Any, Any, Any]):
    """A user's wrapper, which even changes the argument that it was given."""

    def __init__(self, env: gym.Env[Any, Any], by: float, notes: Any = ()) -> None:
        super().__init__(env)
        self.by, self.notes = by, notes
        notes.append(by) if isinstance(notes, list) else None

    def observation(self, observation: Any) -> Any:
        return observation + self.by


class Task:
    def __init__(self, env_name: str, goal: int) -> None:
        self.env_name, self.goal = env_name, goal


class Far(Level):
    """Its space is known only when a task is set, as in Meta-World."""

    def set_task(self, task: Any) -> None:
        self.goal = task.goal
        self.observation_space = spaces.Dict({"cell": Level.observation_space["cell"], **self._more()})

    def _more(self) -> dict[str, Any]:
        return {"far": spaces.Discrete(2)}


class Near(Far):
    def _more(self) -> dict[str, Any]:
        return {"near": spaces.Discrete(2)}


class Benchmark:
    def __init__(self, *, seed: int) -> None:
        self.train_classes = self.test_classes = {"far": Far, "near": Near}
        self.train_tasks = self.test_tasks = [Task("far", 1), Task("far", 2), Task("near", 3)]


def plain_function(env: Any) -> Any:
    raise AssertionError("nobody may call it")


@pytest.fixture(autouse=True)
def level() -> Any:
    gym.register(LEVEL, Level, max_episode_steps=4)
    yield
    del gym.registry[LEVEL]


def around(env: gym.Env[Any, Any], *wrappers: dict[str, Any]) -> Any:
    env = wrapped(env, [CHECKER.validate_python(wrapper) for wrapper in wrappers])
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    return env


def test_keys_are_dropped_or_chosen() -> None:
    kept = around(Level(), {"name": "drop_keys", "keys": ["mission", "image"]})
    assert list(kept.observation_space) == ["cell"]
    two = around(Level(), {"name": "choose_keys", "keys": ["image", "cell"]})
    assert set(two.observation_space) == {"cell", "image"}
    one = around(Level(), {"name": "choose_keys", "keys": "image"})
    assert one.observation_space == Level.observation_space["image"]


def test_the_first_wrapper_is_innermost() -> None:
    flat = around(Level(), {"name": "drop_keys", "keys": ["mission"]}, {"name": "flatten"})
    assert flat.observation_space.shape == (1 + 8 * 8 * 3,)
    with pytest.raises(ValueError, match=r"wrapper 'drop_keys': expected a Dict"):
        around(Level(), {"name": "choose_keys", "keys": "cell"}, {"name": "drop_keys", "keys": ["mission"]})


def test_dtypes_of_observations_and_actions() -> None:
    cell = around(Level(), {"name": "choose_keys", "keys": "cell"}, {"name": "cast", "dtype": "float32"})
    assert cell.observation_space.dtype == np.float32 and cell.reset()[0].dtype == np.float32
    counts = around(Counts(), {"name": "cast", "dtype": "float32", "what": "actions"})
    assert counts.action_space == spaces.Box(-3, 3, (2,), np.float32)
    for action, meant in (([0.6, -2.9], [1, -3]), ([9.0, -9.0], [3, -3])):
        counts.step(np.array(action, np.float32))
        assert counts.unwrapped.taken.dtype == np.int64 and counts.unwrapped.taken.tolist() == meant
    wide = around(Level(), {"name": "cast", "dtype": "uint8", "what": "actions"})
    assert wide.action_space == spaces.Box(100, 255, (2,), np.uint8)
    number = around(Counts(), {"name": "cast", "dtype": "float32"})
    assert number.observation_space == spaces.Box(2, 6, (1,), np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_actions_are_rescaled_or_clipped(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scaled = around(Level(), {"name": "rescale_action"})
    np.testing.assert_array_equal(scaled.action_space.low, [-1, -1])
    action = rng.uniform(-1, 1, 2)
    scaled.step(action)
    np.testing.assert_allclose(scaled.unwrapped.taken, 550 + 450 * action)
    other = around(Level(), {"name": "rescale_action", "low": 0, "high": 2})
    other.step(action + 1)
    np.testing.assert_allclose(other.unwrapped.taken, 550 + 450 * action)
    clipped = around(Level(), {"name": "clip_action"})
    wild = rng.normal(500, 1000, 2)
    clipped.step(wild)
    np.testing.assert_array_equal(clipped.unwrapped.taken, wild.clip(100, 1000))
    endless = Level()
    endless.action_space = spaces.Box(-np.inf, np.inf, (2,))
    with pytest.raises(ValueError, match="finite bounds"):
        around(endless, {"name": "rescale_action"})


def test_one_entry_of_a_reward_vector() -> None:
    env = around(Level(), {"name": "one_reward", "index": 1})
    reward = env.step(np.full(2, 200.0))[1]
    assert reward == -1.5 and type(reward) is float
    for wrong in (
        around(Level(), {"name": "one_reward", "index": 2}),
        around(Counts(), {"name": "one_reward", "index": 0}),
    ):
        with pytest.raises(ValueError, match="expected a vector of more than"):
            wrong.step(wrong.action_space.sample())


def test_frames_are_stacked_and_images_along_their_channels() -> None:
    image = {"name": "choose_keys", "keys": "image"}
    env = around(Level(), image, {"name": "frame_stack", "size": 3})
    assert env.observation_space == spaces.Box(0, 255, (8, 8, 9), np.uint8)
    for _ in range(2):
        observation = env.step(np.full(2, 200.0))[0]
    assert observation in env.observation_space and observation[0, 0].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    zero = around(
        Level(),
        {"name": "choose_keys", "keys": "cell"},
        {"name": "frame_stack", "size": 2, "padding": "zero"},
    )
    first = zero.reset(seed=1)[0]
    assert first.shape == (2, 1) and first[0] == 0 != first[1]


def test_wrappers_of_a_module_get_copies_of_their_arguments() -> None:
    kwargs = {"by": 2.0, "notes": []}
    wrapper = {"name": f"{__name__}:Plus", "kwargs": kwargs}
    for _ in range(2):
        env = wrapped(Counts(), [CHECKER.validate_python(wrapper)])
        assert env.reset(seed=0)[0] == 6
    assert kwargs == {"by": 2.0, "notes": []}
    limited = around(Counts(), {"name": "gymnasium.wrappers:TimeLimit", "kwargs": {"max_episode_steps": 1}})
    assert limited.step(np.zeros(2, np.int64))[3]


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("flatten", "{name: ..., and its arguments}"),
        ({"keys": ["mission"]}, "{name: ..., and its arguments}"),
        ({"name": 3}, "{name: ..., and its arguments}"),
        ({"name": "drop_key", "keys": ["x"]}, "one of the wrappers drop_keys, .*did you mean 'drop_keys'"),
        ({"name": "zzz"}, "one of the wrappers drop_keys, .*frame_stack"),
        ({"name": "FlattenObservation"}, 'did you mean "gymnasium.wrappers:FlattenObservation"'),
        ({"name": "my.module.Thing"}, 'did you mean "my.module:Thing"'),
        ({"name": "drop_keys", "kyes": ["x"], "keys": ["x"]}, "arguments keys .did you mean 'keys'"),
        ({"name": "drop_keys", 3: 4, "keys": ["x"]}, "drop_keys the arguments keys"),
        ({"name": "drop_keys"}, "for drop_keys the argument keys"),
        ({"name": "drop_keys", "keys": []}, "drop_keys keys: .*at least 1"),
        ({"name": "drop_keys", "keys": "mission"}, "drop_keys keys: a valid list"),
        ({"name": "flatten", "kwargs": {}}, "for flatten no argument"),
        ({"name": "cast", "dtype": "float23"}, "cast dtype: 'float32'"),
        ({"name": "one_reward", "index": -1}, "index: greater than or equal to 0"),
        ({"name": "one_reward", "index": 0.5}, "index: a valid integer"),
        ({"name": "frame_stack", "size": 0}, "size: greater than or equal to 1"),
        ({"name": "no_such_module:Thing"}, "No module named 'no_such_module'"),
        ({"name": f"{__name__}:Pluss"}, "no attribute 'Pluss'"),
        ({"name": ":Plus"}, "module:Class"),
        ({"name": "os:system", "kwargs": {"command": "exit 1"}}, "subclass of gymnasium.Wrapper .os:system"),
        ({"name": f"{__name__}:plain_function"}, "a subclass of gymnasium.Wrapper"),
        ({"name": f"{__name__}:Level"}, "a subclass of gymnasium.Wrapper"),
        ({"name": f"{__name__}:Plus", "by": 1}, "nothing beside kwargs"),
        ({"name": f"{__name__}:Plus", "kwarg": {}}, "nothing beside kwargs .did you mean 'kwargs'"),
        ({"name": f"{__name__}:Plus", "kwargs": [1]}, "kwargs: {argument: value}"),
        ({"name": f"{__name__}:Plus", "kwargs": {"note": [], "by": 1}}, "by, notes .*did you mean 'notes'"),
        ({"name": f"{__name__}:Plus"}, "missing a required argument: 'by'"),
        ({"name": f"{__name__}:Plus", "kwargs": {"by": 1, "env": 2}}, "multiple values for argument 'env'"),
        ({"name": f"{__name__}:Plus", "kwargs": {1: 2}}, "must be strings"),
    ],
)  # fmt: skip
def test_faulty_wrappers_are_faults_of_the_config(wrapper: Any, message: str) -> None:
    settings: dict[str, Any] = {"id": LEVEL, "vary_seed": True, "wrappers": [wrapper]}
    with pytest.raises(ValidationError, match=message):
        GymnasiumTasks(**settings)
    with pytest.raises(UserError, match=rf"distribution\.wrappers\.0: expected (?s:.*){message}"):
        read_config(
            {"distribution": {"name": "gymnasium", **settings}, "agent": {"name": "rl2"}, "training": SMALL}
        )


SMALL = {"updates": 2, "trials_per_update": 4, "episodes_per_trial": 2}


@pytest.mark.parametrize(
    ("keys", "message"),
    [(["misson"], "did you mean 'mission'"), (["cell", "mission", "image"], "a key that stays")],
)
def test_keys_that_are_not_there_are_told(keys: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"wrapper 'drop_keys': .*{message}"):
        around(Level(), {"name": "drop_keys", "keys": keys})


DROP = {"name": "drop_keys", "keys": ["mission", "image"]}


def test_a_task_is_set_through_wrappers() -> None:
    family = SetTaskEnvs(LEVEL, 4, wrappers=[DROP, {"name": "one_reward", "index": 0}])
    rng = np.random.default_rng(0)
    tasks = [family.sample(rng, "train") for _ in range(3)]
    env = family.make_env(tasks[0])
    for task in tasks:
        family.set_task(env, task)
        assert list(env.reset(seed=1)[0]) == ["cell"]
        assert env.step(np.full(2, 200.0))[1] == task["task"]
    assert pickle.loads(pickle.dumps(family)) == family


def test_a_benchmarks_wrappers_are_those_of_its_class() -> None:
    family = BenchmarkTasks(f"{__name__}:Benchmark", 4, wrappers=[{"name": "drop_keys", "keys": ["cell"]}])
    tasks = [
        {"split": "train", "index": index, "env_name": name}
        for index, name in enumerate(("far", "far", "near"))
    ]
    env: Any = family.make_env(tasks[0])
    for task in (*tasks, *tasks[::-1]):
        family.set_task(env, task)
        assert env.unwrapped.goal == task["index"] + 1
        assert list(env.observation_space) == [task["env_name"]]


def test_the_seed_is_the_level_through_the_trial() -> None:
    family = GymnasiumTasks(LEVEL, vary_seed=True, wrappers=[DROP])
    rng = np.random.default_rng(0)
    tasks = {split: [family.sample(rng, split) for _ in range(200)] for split in ("train", "test")}
    assert {task["seed"] % 2 for task in tasks["train"]} == {0} and {
        task["seed"] % 2 for task in tasks["test"]
    } == {1}
    seeds = np.array([task["seed"] for task in tasks["train"]])
    assert seeds.max() < 2**31 and len(set(seeds)) == 200 and abs(seeds.mean() / 2**30 - 1) < 0.2
    starts = []
    for task in tasks["train"][:5]:
        env: Any = family.make_env(task)
        starts.append([env.reset(seed=seed, options={})[0]["cell"].item() for seed in (3, None, 4)])
        assert env.unwrapped.seeds == [task["seed"]] * 3
        assert env.spec is None or env.spec.make().reset()[0]["cell"].item() == starts[-1][0]
    assert all(len(set(row)) == 1 for row in starts) and len({row[0] for row in starts}) == 5


def test_seeds_do_not_move_other_draws() -> None:
    laws: dict[str, Any] = {"id": "CartPole-v1", "vary_attributes": {"gravity": [5, 15], "length": [1, 2]}}
    plain, seeded = (GymnasiumTasks(**laws, vary_seed=seed) for seed in (False, True))
    one, other = (family.sample(np.random.default_rng(3), "train") for family in (plain, seeded))
    assert one == {"attributes": other["attributes"]} and other["seed"] % 2 == 0


def test_without_wrappers_a_family_says_what_it_said() -> None:
    family = GymnasiumTasks("CartPole-v1", vary_attributes={"gravity": [5, 15]})
    assert "wrappers" not in str(family) and "vary_seed" not in str(family)
    full = GymnasiumTasks(LEVEL, vary_seed=True, wrappers=[DROP])
    written = yaml.safe_load(yaml.safe_dump(TypeAdapter(GymnasiumTasks).dump_python(full)))
    assert GymnasiumTasks(**written) == full == pickle.loads(pickle.dumps(full))
    assert "drop_keys" in str(full) and "vary_seed=True" in str(full)


def test_a_text_vector_rewards_and_large_actions_are_trained_by_yaml_alone(tmp_path: Path) -> None:
    (tmp_path / "their_wrappers.py").write_text(
        "import gymnasium\n\n\nclass Halved(gymnasium.RewardWrapper):\n"
        "    def __init__(self, env, by):\n        super().__init__(env)\n        self.by = by\n\n"
        "    def reward(self, reward):\n        return self.by * reward\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        config = {
            "distribution": {
                "name": "gymnasium",
                "id": LEVEL,
                "vary_seed": True,
                "wrappers": [
                    {"name": "choose_keys", "keys": "image"},
                    {"name": "frame_stack", "size": 2},
                    {"name": "rescale_action"},
                    {"name": "one_reward", "index": 1},
                    {"name": "their_wrappers:Halved", "kwargs": {"by": 0.5}},
                ],
            },
            "agent": {"name": "rl2", "core": {"name": "lstm", "hidden_size": 4}},
            "training": SMALL,
            "workers": {"processes": 0},
            "device": "cpu",
            "threads": 1,
        }  # fmt: skip
        run = train(config, run_dir=tmp_path / "run")
        assert run.finished
        law = read_config(config).law
        assert law.observation_space == spaces.Box(0, 255, (8, 8, 6), np.uint8)
        envs = law.make_envs(2, torch.device("cpu"))
        envs.reset(seed=0)
        assert envs.step(torch.zeros(2, 2))[1].tolist() == [-0.75, -0.75]
    finally:
        sys.path.remove(str(tmp_path))
