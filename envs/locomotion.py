"""MuJoCo robots that must find out in which direction, or how fast, to run (needs the extra ``mujoco``)."""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Self, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True)
_Horizon = Annotated[int, Field(ge=1, le=10**6, description="maximum number of steps in an episode")]
_Speed = Annotated[float, Field(ge=-1e3, le=1e3, allow_inf_nan=False, description="in metres per second")]
_Task = Mapping[str, Any]
_Observation = NDArray[np.float32]
_CHEETAH: dict[str, Any] = {"id": "HalfCheetah-v5", "ctrl_cost_weight": 0.05}
_ANT: dict[str, Any] = {"id": "Ant-v5", "ctrl_cost_weight": 0.005, "contact_cost_weight": 0.0005}
_SURVIVAL = 0.05  # the ant's reward for every step, also for the step in which it falls: as in rllab


@dataclass(frozen=True, config=_STRICT)
class CheetahDirections:
    """Half-cheetahs that must run forward (d = 1) or backward (d = −1): r = d·v − 0.05·‖a‖².

    v is the torso's velocity along x over the step, and a the action in [−1, 1]⁶. The environment is
    Gymnasium's HalfCheetah-v5; its observation (17 numbers, without x) is float32. There are only two tasks:
    train and test share them.

    Source: Finn et al. 2017 (arXiv 1703.03400), section 5.3, and the authors' code. That code uses an older
    MuJoCo, body and observation, so returns cannot be compared exactly.
    """

    horizon: _Horizon = 200

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, float]:
        """Return {"direction": 1.0 or −1.0}, either as likely."""
        return {"direction": _direction(rng)}

    def make_env(self, task: _Task, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Return a cheetah with the task's direction."""
        return _make(_CHEETAH, self.horizon, _along, task["direction"], render_mode)

    def set_task(self, env: gym.Env[Any, Any], task: _Task) -> None:
        """Set another direction in a cheetah that ``make_env`` made."""
        _retarget(env, task["direction"])


@dataclass(frozen=True, config=_STRICT)
class CheetahVelocities:
    """Half-cheetahs that must run at a speed g ~ U[low, high]: r = −|v − g| − 0.05·‖a‖².

    Everything else, and the source, is as in ``CheetahDirections``. The tasks are continuous, so train and
    test are draws of the same law.

    Raises:
        pydantic.ValidationError: for numbers out of range, or if low > high.
    """

    horizon: _Horizon = 200
    low: _Speed = 0.0
    high: _Speed = 2.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, float]:
        """Return {"velocity": g}, in metres per second."""
        return {"velocity": float(rng.uniform(self.low, self.high))}

    def make_env(self, task: _Task, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Return a cheetah with the task's speed."""
        return _make(_CHEETAH, self.horizon, _at, task["velocity"], render_mode)

    def set_task(self, env: gym.Env[Any, Any], task: _Task) -> None:
        """Set another speed in a cheetah that ``make_env`` made."""
        _retarget(env, task["velocity"])


@dataclass(frozen=True, config=_STRICT)
class AntDirections:
    """Ants that must run forward (d = 1) or backward (d = −1): r = d·v − costs + 0.05.

    costs = 0.005·‖a‖² + 0.0005·‖clip(f, −1, 1)‖² with the action a in [−1, 1]⁸ and the contact forces f on
    all bodies; v is the torso's velocity along x over the step. The environment is Gymnasium's Ant-v5; its
    observation (105 numbers, without x and y) is float32. An episode terminates when the torso's height
    leaves [0.2, 1]. There are only two tasks: train and test share them.

    Source: as in ``CheetahDirections``, with the same restriction; the weights are from rllab's ant.
    """

    horizon: _Horizon = 200

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, float]:
        """Return {"direction": 1.0 or −1.0}, either as likely."""
        return {"direction": _direction(rng)}

    def make_env(self, task: _Task, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Return an ant with the task's direction."""
        return _make(_ANT, self.horizon, _ant_along, task["direction"], render_mode)

    def set_task(self, env: gym.Env[Any, Any], task: _Task) -> None:
        """Set another direction in an ant that ``make_env`` made."""
        _retarget(env, task["direction"])


@dataclass(frozen=True, config=_STRICT)
class AntVelocities:
    """Ants that must run at a speed g ~ U[low, high]: r = −|v − g| + 1 − costs + 0.05.

    Everything else, and the source, is as in ``AntDirections``. The tasks are continuous, so train and test
    are draws of the same law. The 1 is from the authors' code: without it, an early fall would pay.

    Raises:
        pydantic.ValidationError: for numbers out of range, or if low > high.
    """

    horizon: _Horizon = 200
    low: _Speed = 0.0
    high: _Speed = 3.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, float]:
        """Return {"velocity": g}, in metres per second."""
        return {"velocity": float(rng.uniform(self.low, self.high))}

    def make_env(self, task: _Task, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Return an ant with the task's speed."""
        return _make(_ANT, self.horizon, _ant_at, task["velocity"], render_mode)

    def set_task(self, env: gym.Env[Any, Any], task: _Task) -> None:
        """Set another speed in an ant that ``make_env`` made."""
        _retarget(env, task["velocity"])


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Keep MuJoCo, if it is imported, from writing MUJOCO_LOG.TXT into the working directory.

    Gymnasium's half-cheetah uses a deprecated setting of MuJoCo (``settotalmass``). A user cannot change
    that, and MuJoCo would write a warning about it into the file. Other warnings become Python warnings.
    """
    mujoco = sys.modules.get("mujoco")
    if mujoco is None:
        yield
        return
    before, said = mujoco.get_mju_user_warning(), list[str]()
    mujoco.set_mju_user_warning(said.append)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
    for message in said:
        if "settotalmass" not in message:
            warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=3)


class _Runner(gym.Wrapper[_Observation, Any, Any, Any]):
    """A robot whose reward is ``pay(v, target)`` minus the costs that Gymnasium computes."""

    def __init__(self, env: gym.Env[Any, Any], pay: Callable[[float, float], float], target: float) -> None:
        super().__init__(env)
        self._pay, self.target = pay, target
        shape = env.observation_space.shape
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)

    @property
    def spec(self) -> None:  # type: ignore[override]  # read-only, as in gym.Wrapper
        return None  # the registered environment has another reward: making it again would be wrong

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[_Observation, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation.astype(np.float32), info

    def step(self, action: Any) -> tuple[_Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = self.env.step(action)
        costs = -info["reward_ctrl"] - info.get("reward_contact", 0.0)  # no contact cost for the cheetah
        reward = float(self._pay(info["x_velocity"], self.target) - costs)
        return observation.astype(np.float32), reward, bool(terminated), truncated, info


def _along(velocity: float, direction: float) -> float:
    return direction * velocity


def _at(velocity: float, goal: float) -> float:
    return -abs(velocity - goal)


def _ant_along(velocity: float, direction: float) -> float:
    return _along(velocity, direction) + _SURVIVAL


def _ant_at(velocity: float, goal: float) -> float:
    return _at(velocity, goal) + 1.0 + _SURVIVAL


def _direction(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"low <= high, got low={low} and high={high}")


def _make(
    body: dict[str, Any],
    horizon: int,
    pay: Callable[[float, float], float],
    target: float,
    render_mode: str | None,
) -> gym.Env[Any, Any]:
    try:
        importlib.import_module("mujoco")  # not at the top: it is optional and slow to import
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"expected MuJoCo for {body['id']}, got none ({error}); do: pip install 'rl2meta[mujoco]'"
        ) from None
    with quiet_mujoco():
        env = gym.make(**body, max_episode_steps=horizon, disable_env_checker=True, render_mode=render_mode)
    return _Runner(env, pay, target)


def _retarget(env: gym.Env[Any, Any], target: float) -> None:
    if not isinstance(env, _Runner):
        raise TypeError(f"expected an environment that make_env made, got {type(env).__name__}")
    env.target = target
