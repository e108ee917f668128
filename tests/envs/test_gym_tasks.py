"""Gymnasium environments with varied parameters: against the equations of motion, and what is refused."""

import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env
from pydantic import TypeAdapter, ValidationError
from stable_baselines3.common.env_checker import check_env as check_sb3

from rl2meta.envs.gym_tasks import GymnasiumTasks

POLES = GymnasiumTasks(
    "CartPole-v1", vary_attributes={"gravity": [5, 15], "force_mag": {"log_uniform": [5, 20]}}
)
LAKES = GymnasiumTasks(
    "FrozenLake-v1", kwargs={"is_slippery": False}, vary_kwargs={"map_name": {"choice": ["4x4"]}}
)


class Echo(gym.Env[Any, Any]):
    """Observes what its resets were told."""

    observation_space = gym.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    told: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.told = options
        return np.array([options["task"]["goal"]], np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), 0.0, False, False, {}

    @property
    def fixed(self) -> int:
        return 3


@pytest.fixture
def echo() -> Any:
    gym.register("rl2meta-test/Echo-v0", Echo)
    yield "rl2meta-test/Echo-v0"
    del gym.registry["rl2meta-test/Echo-v0"]


def _cartpole_step(state: Any, action: int, gravity: float, force: float) -> Any:
    """Euler's step of Barto, Sutton & Anderson 1983 (without friction), by solving for both accelerations."""
    x, v, angle, spin = state
    cart, pole, half, dt = 1.0, 0.1, 0.5, 0.02
    push = force if action else -force
    # (M + m) a + m l cosθ α = F + m l ω² sinθ;  cosθ a + 4/3 l α = g sinθ
    matrix = [[cart + pole, pole * half * math.cos(angle)], [math.cos(angle), 4 / 3 * half]]
    right = [push + pole * half * spin**2 * math.sin(angle), gravity * math.sin(angle)]
    acceleration, turning = np.linalg.solve(matrix, right)
    return x + dt * v, v + dt * acceleration, angle + dt * spin, spin + dt * turning


@pytest.mark.parametrize("seed", range(3))
def test_varied_attributes_are_in_the_equations_of_motion(seed: int) -> None:
    task = POLES.sample(np.random.default_rng(seed), "train")
    attributes = task["attributes"]
    env = POLES.make_env(task)
    state, _ = env.reset(seed=seed)
    for step in range(8):
        state = _cartpole_step(state, step % 2, attributes["gravity"], attributes["force_mag"])
        observation, *_ = env.step(step % 2)
        np.testing.assert_allclose(observation, state, rtol=1e-4, atol=1e-6)


def test_a_task_stays_through_resets_and_the_same_seed_gives_the_same_stream() -> None:
    task = POLES.sample(np.random.default_rng(0), "train")

    def stream() -> list[Any]:
        env, seen = POLES.make_env(task), []
        for episode in range(3):
            seen.append(env.reset(seed=5 if episode == 0 else None)[0])
            seen.extend(env.step(step % 2)[0] for step in range(5))
            assert env.unwrapped.gravity == task["attributes"]["gravity"]  # type: ignore[attr-defined]
        return seen

    np.testing.assert_array_equal(stream(), stream())


def test_tasks_cover_their_laws() -> None:
    rng = np.random.default_rng(0)
    tasks = [POLES.sample(rng, "test")["attributes"] for _ in range(500)]
    gravity = np.array([task["gravity"] for task in tasks])
    assert gravity.min() >= 5 and gravity.max() <= 15 and np.ptp(gravity) > 9.5
    force = np.log([task["force_mag"] for task in tasks])
    assert abs(force.mean() - math.log(10)) < 0.1  # the middle of [5, 20], by the logarithm


def test_kwargs_are_given_to_the_constructor() -> None:
    maps = [["SG", "FF"], ["SF", "FG"]]
    family = GymnasiumTasks("FrozenLake-v1", 6, {"is_slippery": False}, {"desc": {"choice": maps}})
    rng = np.random.default_rng(0)
    for task in [family.sample(rng, "train") for _ in range(10)]:
        env = family.make_env(task)
        env.reset(seed=0)
        right, down = 2, 1
        assert [env.step(action)[1] for action in (down, right)] == [0, task["kwargs"]["desc"] == maps[1]]


def test_options_come_with_every_reset(echo: str) -> None:
    family = GymnasiumTasks(echo, 4, vary_options={"goal": [1, 2]})
    task = family.sample(np.random.default_rng(0), "train")
    env = family.make_env(task)
    for options in (None, {"more": 1}):
        observation, _ = env.reset(options=options)
        assert observation == np.float32(task["options"]["goal"])
        assert env.spec is not None and env.spec.make().reset(seed=0)[0] == observation
        assert env.unwrapped.told == {**(options or {}), "task": task["options"]}  # type: ignore[attr-defined]


def test_dots_lead_into_attributes() -> None:
    family = GymnasiumTasks("CartPole-v1", vary_attributes={"spec.reward_threshold": [1, 2]})
    task = family.sample(np.random.default_rng(0), "train")
    env = family.make_env(task)
    assert env.unwrapped.spec is not None
    assert env.unwrapped.spec.reward_threshold == task["attributes"]["spec.reward_threshold"]
    assert gym.spec("CartPole-v1").reward_threshold == 475.0


def test_parts_that_nothing_varies_are_left_out() -> None:
    assert POLES.sample(np.random.default_rng(0), "train").keys() == {"attributes"}
    assert LAKES.sample(np.random.default_rng(0), "train") == {"kwargs": {"map_name": "4x4"}}


def test_the_horizon_is_the_ids_or_the_one_given() -> None:
    assert POLES.horizon == 500 and LAKES.horizon == 100
    short = GymnasiumTasks("Pendulum-v1", 3, vary_attributes={"g": [5, 15]})
    env = short.make_env(short.sample(np.random.default_rng(0), "train"))
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(3)] == [False, False, True]


def test_a_family_survives_yaml_and_pickle() -> None:
    adapter = TypeAdapter(GymnasiumTasks)
    written = yaml.safe_load(yaml.safe_dump(adapter.dump_python(POLES)))
    assert written["horizon"] == 500
    assert GymnasiumTasks(**written) == POLES == pickle.loads(pickle.dumps(POLES))
    assert GymnasiumTasks(**{**written, "horizon": None}) == POLES
    assert "CartPole-v1" in str(POLES)


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version", "ignore:.*infinity")
@pytest.mark.parametrize("family", [POLES, LAKES], ids=["poles", "lakes"])
def test_what_is_made_passes_the_checkers(family: GymnasiumTasks) -> None:
    env = family.make_env(family.sample(np.random.default_rng(0), "train"))
    check_env(env, skip_render_check=True)
    check_sb3(env, skip_render_check=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "CartPol-v1"}, "Did you mean.*CartPole"),
        ({"id": "CartPole-v9"}, "CartPole"),
        ({"id": "no_such_module:Thing-v0"}, "No module named 'no_such_module'"),
        ({"horizon": 0}, "greater than or equal to 1"),
        ({"vary_attributes": {}}, "all tasks are equal"),
        ({"vary_attributes": {"gravity": [2, 1]}}, "low <= high"),
        ({"kwargs": {"max_episode_steps": 3}}, "without max_episode_steps"),
        ({"kwargs": {"a": 1}, "vary_kwargs": {"a": [0, 1]}}, "in both"),
        ({"varied": 3}, "varied"),
    ],
)
def test_faulty_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GymnasiumTasks(**{"id": "CartPole-v1", "vary_attributes": {"gravity": [5, 15]}, **settings})


def test_an_id_without_a_length_asks_for_a_horizon(echo: str) -> None:
    with pytest.raises(ValidationError, match="without max_episode_steps"):
        GymnasiumTasks(echo, vary_options={"goal": [1, 2]})


@pytest.mark.parametrize(
    ("name", "message"),
    [("gravty", "did you mean 'gravity'"), ("zzz", "known: .*gravity"), ("spec.nothing", "EnvSpec")],
)
def test_an_attribute_that_is_not_there_is_refused(name: str, message: str) -> None:
    family = GymnasiumTasks("CartPole-v1", vary_attributes={name: [5, 15]})
    with pytest.raises(ValueError, match=message):
        family.make_env(family.sample(np.random.default_rng(0), "train"))


def test_an_attribute_that_cannot_be_set_is_refused(echo: str) -> None:
    family = GymnasiumTasks(echo, 4, vary_attributes={"fixed": [5, 15]})
    with pytest.raises(ValueError, match="'fixed' to set"):
        family.make_env(family.sample(np.random.default_rng(0), "train"))


def test_workers_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; import rl2meta.envs.gym_tasks, rl2meta.envs.laws, rl2meta.envs.locomotion, "
        "rl2meta.envs.task_conventions; assert not {'torch', 'mujoco'} & sys.modules.keys()"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
