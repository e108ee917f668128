"""MuJoCo's runners: rewards by finite differences of where the body was, and the raw contact forces."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env
from pydantic import TypeAdapter, ValidationError
from stable_baselines3.common.env_checker import check_env as check_sb3

from rl2meta.envs.gym_tasks import GymnasiumTasks
from rl2meta.envs.locomotion import AntDirections, AntVelocities, CheetahDirections, CheetahVelocities

mujoco = pytest.importorskip("mujoco")

FAMILIES = [CheetahDirections(), CheetahVelocities(), AntDirections(), AntVelocities()]
KINDS = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)


def _task(family: Any, seed: int = 0) -> Any:
    return family.sample(np.random.default_rng(seed), "train")


def _torso(env: Any) -> float:
    return float(env.unwrapped.data.body("torso").xpos[0])


def _steps(env: Any, count: int, seed: int = 0) -> Any:
    """Yield (velocity of the torso, action, contact forces, reward) over random actions."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    for _ in range(count):
        before, clock = _torso(env), env.unwrapped.data.time
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        _, reward, terminated, *_ = env.step(action)
        velocity = (_torso(env) - before) / (env.unwrapped.data.time - clock)
        yield velocity, action.astype(float), env.unwrapped.data.cfrc_ext.copy(), reward
        if terminated:
            return


@pytest.mark.parametrize("seed", range(2))
def test_the_cheetahs_rewards(seed: int) -> None:
    for family in FAMILIES[:2]:
        task = _task(family, seed)
        env, rng = family.make_env(task), np.random.default_rng(seed)
        env.reset(seed=seed)
        data: Any = env.unwrapped.data
        for _ in range(30):
            before, clock = data.qpos[0], data.time
            a = rng.uniform(-1, 1, 6)
            _, reward, terminated, truncated, _ = env.step(a)
            v = (data.qpos[0] - before) / (data.time - clock)
            wanted = task["direction"] * v if "direction" in task else -abs(v - task["velocity"])
            assert reward == pytest.approx(wanted - 0.05 * a @ a, abs=1e-9)
            assert type(reward) is float and not terminated and not truncated


@pytest.mark.parametrize("seed", range(3))
def test_the_ants_rewards(seed: int) -> None:
    touched = False
    for family in FAMILIES[2:]:
        task = _task(family, seed)
        for v, a, forces, reward in _steps(family.make_env(task), 100, seed):
            costs = 0.5e-2 * a @ a + 0.5e-3 * (np.clip(forces, -1, 1) ** 2).sum()
            wanted = task["direction"] * v if "direction" in task else 1 - abs(v - task["velocity"])
            assert reward == pytest.approx(wanted - costs + 0.05, abs=1e-6) and type(reward) is float
            touched |= bool(np.abs(forces).max() > 1)
    assert touched  # else the contact forces were not looked at


def test_an_ant_that_flies_has_fallen_and_is_paid_as_ever() -> None:
    env = AntDirections().make_env({"direction": 1.0})
    env.reset(seed=0)
    data: Any = env.unwrapped.data  # type: ignore[attr-defined]
    data.qpos[2] = 5.0
    mujoco.mj_forward(env.unwrapped.model, data)  # type: ignore[attr-defined]
    _, reward, terminated, *_, info = env.step(np.zeros(8, np.float32))
    assert terminated is True
    assert reward == pytest.approx(info["x_velocity"] + 0.05 + info["reward_contact"])


@KINDS
def test_another_task_of_the_same_environment_is_as_a_new_one(family: Any) -> None:
    one, other = {"direction": 1.0, "velocity": 0.5}, {"direction": -1.0, "velocity": 1.5}
    kept, fresh = family.make_env(one), family.make_env(other)
    first = [reward for *_, reward in _steps(kept, 10)]
    family.set_task(kept, other)
    again = [reward for *_, reward in _steps(kept, 10)]
    assert again == [reward for *_, reward in _steps(fresh, 10)] != first


@KINDS
def test_an_episode_is_cut_at_the_horizon_and_its_observations_are_float32(family: Any) -> None:
    short = type(family)(horizon=3)
    env = short.make_env(_task(short))
    observation, _ = env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)
    cut = []
    for _ in range(3):
        assert observation.dtype == np.float32 and env.observation_space.contains(observation)
        observation, *_, truncated, _ = env.step(action)
        cut.append(truncated)
    assert cut == [False, False, True]
    assert env.action_space.low.min() == -1 and env.action_space.high.max() == 1


def test_tasks_cover_their_laws() -> None:
    rng = np.random.default_rng(0)
    for family in FAMILIES[::2]:
        directions = [family.sample(rng, "test")["direction"] for _ in range(400)]
        assert set(directions) == {-1.0, 1.0} and abs(np.mean(directions)) < 5 / 20
    for family, high in zip(FAMILIES[1::2], (2, 3), strict=True):
        speeds = [family.sample(rng, "test")["velocity"] for _ in range(400)]
        assert 0 <= min(speeds) < 0.05 * high < 0.95 * high < max(speeds) <= high
        assert abs(np.mean(speeds) - high / 2) < 5 * high / np.sqrt(12 * 400)
        assert type(speeds[0]) is float


@KINDS
def test_a_family_survives_yaml_and_pickle(family: Any) -> None:
    written = yaml.safe_load(yaml.safe_dump(TypeAdapter(type(family)).dump_python(family)))
    assert type(family)(**written) == family == pickle.loads(pickle.dumps(family))


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version", "ignore:.*infinity")
@KINDS
def test_what_is_made_passes_the_checkers(family: Any) -> None:
    env = family.make_env(_task(family))
    check_env(env, skip_render_check=True)
    check_sb3(env, skip_render_check=True)


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for family in FAMILIES:
        family.make_env(_task(family))
    cheetahs = GymnasiumTasks("HalfCheetah-v5", vary_attributes={"model.opt.timestep": [0.005, 0.01]})
    cheetahs.make_env(_task(cheetahs))
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")
    assert mujoco.get_mju_user_warning() is None


def test_without_mujoco_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rl2meta\[mujoco\]'"):
        CheetahDirections().make_env({"direction": 1.0})


def test_what_is_out_of_range_is_refused() -> None:
    for kind in (CheetahVelocities, AntVelocities):
        with pytest.raises(ValidationError, match="low <= high"):
            kind(low=2.0, high=1.0)
    with pytest.raises(ValidationError):
        AntDirections(horizon=0)
    with pytest.raises(TypeError, match="that make_env made"):
        AntDirections().set_task(AntDirections().make_env({"direction": 1.0}).unwrapped, {"direction": 1.0})
