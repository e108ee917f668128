"""Process workers alone: they step single environments with random actions, which cost nothing."""

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rl2meta.envs.gym_tasks import GymnasiumTasks
from rl2meta.speed.suites import Suite, Workload
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

_ID, _HORIZON = "CartPole-v1", 500
_ROWS = 1000  # of actions, which are drawn before anything is measured


def worker_suite(device: torch.device, *, environments: int = 64, steps: int = 20) -> Suite:
    """Return our process workers, one per core or none, and Gymnasium's, one per environment or none.

    Args:
        device: is not used; single environments run on the CPU.
        environments: how many of them are stepped side by side.
        steps: steps of each environment in a unit.
    """
    workloads = {
        "rl2meta": _ours(None, environments, steps),
        "rl2meta in one process": _ours(0, environments, steps)._replace(rival_of="rl2meta"),
        "Gymnasium's AsyncVectorEnv": _gymnasium(_async, environments, steps),
        "Gymnasium's SyncVectorEnv": _gymnasium(_sync, environments, steps),
    }
    setting = {"id": _ID, "environments": environments, "horizon": _HORIZON}
    return Suite(f"process workers, {environments} × {_ID}, random actions", setting, workloads)


def _ours(processes: int | None, environments: int, steps: int) -> Workload:
    family = GymnasiumTasks(id=_ID, horizon=_HORIZON, vary_attributes={"gravity": [9.0, 11.0]})
    law = PluggedIn(family, WorkerSettings(processes=processes))
    envs = law.make_envs(environments, torch.device("cpu"))
    envs.reset(seed=0)
    actions = cycle([torch.from_numpy(row) for row in _actions(environments)])
    return Workload(_unit(envs.step, actions, steps, environments), countable=False)


def _gymnasium(make: Callable[[Any], Any], environments: int, steps: int) -> Workload:
    envs = make([lambda: gym.make(_ID, max_episode_steps=_HORIZON, disable_env_checker=True)] * environments)
    envs.reset(seed=0)
    unit = _unit(envs.step, cycle(_actions(environments)), steps, environments)
    return Workload(unit, rival_of="rl2meta", countable=False)


def _async(makers: Any) -> Any:
    # This process must not be forked, for it has torch's threads.
    return AsyncVectorEnv(makers, context="forkserver", autoreset_mode=AutoresetMode.SAME_STEP)


def _sync(makers: Any) -> Any:
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def _actions(environments: int) -> list[Any]:
    return list(np.random.default_rng(0).integers(0, 2, (_ROWS, environments)))


def _unit(
    step: Callable[[Any], Any], actions: Iterator[Any], steps: int, environments: int
) -> Callable[[], int]:
    def unit() -> int:
        for _ in range(steps):
            step(next(actions))
        return steps * environments

    return unit
