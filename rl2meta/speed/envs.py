"""The batched families alone, stepped with random actions, which are drawn beforehand."""

from collections.abc import Sequence
from typing import Any

import torch

from rl2meta.agents.references.anything import UniformAgent
from rl2meta.envs.bandits import BernoulliBandits, GaussianBandits
from rl2meta.envs.dependent_bandits import DependentBandits
from rl2meta.envs.mazes import DarkRooms, KeyToDoor
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.sinusoids import Sinusoids
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.envs.two_step import TwoStep
from rl2meta.randomness import generator
from rl2meta.speed.suites import Suite, Workload
from rl2meta.tasks import TaskDistribution, sample_tasks
from rl2meta.trial import TimeStep

_TASKS = {"cpu": 2**12, "cuda": 2**17}
_ROWS = 8  # of actions, which are drawn before anything is measured
_FAMILIES: tuple[type[Any], ...] = (
    GaussianBandits,
    DependentBandits,
    TabularMDPs,
    TwoStep,
    DarkRooms,
    KeyToDoor,
    PointNavigation,
    Sinusoids,
)


def env_suite(
    device: torch.device,
    *,
    tasks: int | None = None,
    bandit_tasks: Sequence[int] = (2**8, 2**16, 2**20),
    steps: int = 64,
) -> Suite:
    """Return every batched family alone, and bandits with fewer tasks and with more.

    Args:
        device: the device of the environments.
        tasks: the number of tasks of each family; None for 4,096 on a CPU and 131,072 on a GPU.
        bandit_tasks: other numbers of tasks with which Bernoulli bandits are measured too.
        steps: steps of each environment in a unit.
    """
    tasks = _TASKS[device.type] if tasks is None else tasks
    workloads = {"BernoulliBandits": _alone(BernoulliBandits(), tasks, steps, device)}
    workloads |= {family.__name__: _alone(family(), tasks, steps, device) for family in _FAMILIES}
    workloads |= {
        f"BernoulliBandits, {size:,} tasks": _alone(BernoulliBandits(), size, steps, device)
        for size in bandit_tasks
    }
    title = f"batched environments alone, {tasks:,} tasks, random actions"
    return Suite(title, {"tasks": tasks, "steps": steps}, workloads)


def _alone(law: TaskDistribution, num_tasks: int, steps: int, device: torch.device) -> Workload:
    envs = law.make_envs(num_tasks, device)
    tasks = sample_tasks(law, num_tasks, 0, "train").to(device)
    envs.reset(seed=0, options={"tasks": tasks})
    actions = _actions(law, num_tasks, device)

    @torch.no_grad()
    def unit() -> int:
        for step in range(steps):
            envs.step(actions[step % _ROWS])
        return steps * num_tasks

    return Workload(unit, {"tasks": num_tasks})


def _actions(law: TaskDistribution, num_tasks: int, device: torch.device) -> list[torch.Tensor]:
    agent = UniformAgent(law.action_space)
    carry = agent.begin(num_tasks, generator(0, "actions", device=device))
    nothing = torch.zeros(num_tasks, device=device)
    step = TimeStep(nothing, nothing, nothing, nothing)
    return [agent.act(carry, step)[0].action for _ in range(_ROWS)]
