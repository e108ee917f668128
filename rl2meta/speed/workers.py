"""Process workers alone: single environments, stepped by a policy that costs nothing."""

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rl2meta.envs.gym_tasks import GymnasiumTasks
from rl2meta.speed.suites import Contestant, Suite
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

ENVIRONMENTS = 64
_ID, _HORIZON = "CartPole-v1", 500
_ROWS, _STEPS = 1000, 20  # of actions, drawn beforehand; in a unit


def worker_suite(device: torch.device, against: str | None) -> Suite:
    """Return our process workers, one per core, and Gymnasium's vectorisers, one process for each or none."""
    contestants = {
        "rl2meta": _ours(None),
        "rl2meta in one process": _ours(0)._replace(rival=True),
        "Gymnasium's AsyncVectorEnv": _gymnasium(_async),
        "Gymnasium's SyncVectorEnv": _gymnasium(_sync),
    }
    setting = {"id": _ID, "environments": ENVIRONMENTS, "horizon": _HORIZON}
    return Suite(f"process workers, {ENVIRONMENTS} × {_ID}, random actions", setting, contestants)


def _ours(processes: int | None) -> Contestant:
    family = GymnasiumTasks(id=_ID, horizon=_HORIZON, vary_attributes={"gravity": [9.0, 11.0]})
    law = PluggedIn(family, WorkerSettings(processes=processes))
    envs = law.make_envs(ENVIRONMENTS, torch.device("cpu"))
    envs.reset(seed=0)
    actions = cycle([torch.from_numpy(row) for row in _actions()])
    return Contestant(_unit(envs.step, actions), countable=False)


def _gymnasium(make: Callable[[Any], Any]) -> Contestant:
    envs = make([lambda: gym.make(_ID, max_episode_steps=_HORIZON, disable_env_checker=True)] * ENVIRONMENTS)
    envs.reset(seed=0)
    return Contestant(_unit(envs.step, cycle(_actions())), rival=True, countable=False)


def _async(makers: Any) -> Any:
    # Not forked: this process has torch's threads.
    return AsyncVectorEnv(makers, context="forkserver", autoreset_mode=AutoresetMode.SAME_STEP)


def _sync(makers: Any) -> Any:
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def _actions() -> list[Any]:
    return list(np.random.default_rng(0).integers(0, 2, (_ROWS, ENVIRONMENTS)))


def _unit(step: Callable[[Any], Any], actions: Iterator[Any]) -> Callable[[], int]:
    def unit() -> int:
        for _ in range(_STEPS):
            step(next(actions))
        return _STEPS * ENVIRONMENTS

    return unit
