"""The batched families alone: random actions, drawn beforehand."""

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
from rl2meta.speed.suites import Contestant, Suite
from rl2meta.tasks import TaskDistribution, sample_tasks
from rl2meta.trial import TimeStep

_TASKS = {"cpu": 2**12, "cuda": 2**17}
_SIZES = (2**8, 2**16, 2**20)
_ROWS, _STEPS = 8, 64  # of actions; in a unit
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


def env_suite(device: torch.device, against: str | None) -> Suite:
    """Return every batched family alone, and bandits of more tasks and fewer."""
    tasks = _TASKS[device.type]
    contestants = {"BernoulliBandits": _alone(BernoulliBandits(), tasks, device)}
    contestants |= {family.__name__: _alone(family(), tasks, device) for family in _FAMILIES}
    contestants |= {
        f"BernoulliBandits, {size:,} tasks": _alone(BernoulliBandits(), size, device) for size in _SIZES
    }
    title = f"batched environments alone, {tasks:,} tasks, random actions"
    return Suite(title, {"tasks": tasks, "steps": _STEPS}, contestants)


def _alone(law: TaskDistribution, num_tasks: int, device: torch.device) -> Contestant:
    envs = law.make_envs(num_tasks, device)
    tasks = sample_tasks(law, num_tasks, 0, "train").to(device)
    envs.reset(seed=0, options={"tasks": tasks})
    actions = _actions(law, num_tasks, device)

    @torch.no_grad()
    def unit() -> int:
        for step in range(_STEPS):
            envs.step(actions[step % _ROWS])
        return _STEPS * num_tasks

    return Contestant(unit, {"tasks": num_tasks})


def _actions(law: TaskDistribution, num_tasks: int, device: torch.device) -> list[torch.Tensor]:
    agent = UniformAgent(law.action_space)
    carry = agent.begin(num_tasks, generator(0, "actions", device=device))
    nothing = torch.zeros(num_tasks, device=device)
    step = TimeStep(nothing, nothing, nothing, nothing)
    return [agent.act(carry, step)[0].action for _ in range(_ROWS)]
