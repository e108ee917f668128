"""The regrets of all actions are what each action loses if it is taken after the same past."""

from importlib import import_module
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from rl2meta.agents.references.anything import UniformAgent
from rl2meta.envs import FAMILIES
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.batched import TaskEnv
from rl2meta.envs.mazes import DarkRooms, KeyToDoor
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.envs.two_step import TwoStep
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks

CPU = torch.device("cpu")
DEFAULTS = [getattr(import_module(path), name)() for path, name in (f.split(":") for f in FAMILIES.values())]
DISCRETE = [law for law in DEFAULTS if isinstance(law.action_space, gym.spaces.Discrete)]
OTHERS = [
    BernoulliBandits(num_arms=2, low=0.4),
    TabularMDPs(num_states=3, num_actions=2, horizon=3, noise=0.0),
    TwoStep(common=0.8, switch_probability=0.5),
    DarkRooms(size=7, horizon=9, layout="four_rooms"),
    KeyToDoor(size=3, horizon=5),
]
EVERY_LAW = pytest.mark.parametrize("law", [*DISCRETE, *OTHERS], ids=str)
NUM_TASKS = 100


def ends(law: Any, past: Tensor) -> list[tuple[Any, ...]]:
    """Return the step of each action, by all tasks, after the actions of the past [T, B]."""
    found = []
    for action in range(int(law.action_space.n)):
        envs = law.make_envs(NUM_TASKS, CPU)
        envs.reset(seed=1, options={"tasks": sample_tasks(law, NUM_TASKS, 0, "train")})
        for each in past:
            envs.step(each)
        found.append(envs.step(torch.full((NUM_TASKS,), action)))
    return found


@EVERY_LAW
@pytest.mark.parametrize("steps", [0, 1, 3, 8])
def test_regrets_are_those_of_replays(law: Any, steps: int) -> None:
    num_actions = int(law.action_space.n)
    past = torch.randint(num_actions, (steps, NUM_TASKS), generator=generator(2))
    infos = [info for *_, info in ends(law, past)]
    replayed = torch.stack([info["regret"] for info in infos], dim=1)  # [B, A]
    for info in infos:
        assert info["regrets"].shape == (NUM_TASKS, num_actions) and info["regrets"].dtype == torch.float32
        assert torch.equal(info["regrets"], replayed)
    assert torch.equal(replayed.amin(dim=1), torch.zeros(NUM_TASKS))
    harmless = (isinstance(law, TwoStep) and steps % 2) or law == KeyToDoor()  # sides; time for detours
    assert harmless or replayed.amax() > 0


@EVERY_LAW
def test_regrets_reach_the_trajectory_and_sums_by_name_stay(law: Any) -> None:
    trial = RolloutWorker(law).run(UniformAgent(law.action_space), sample_tasks(law, 20, 0, "test"), 2, 0)
    for phase in trial.phases:
        regrets, regret = phase.truth["regrets"], phase.truth["regret"]
        assert regrets.shape == (*phase.mask.shape, int(law.action_space.n))
        own = regrets.gather(2, phase.action.unsqueeze(2)).squeeze(2)
        assert torch.equal(own * phase.mask, regret * phase.mask)
    assert trial.per_task("regret") is not None
    by_episode, whole = trial.per_episode("regret"), trial.per_task("regret")
    torch.testing.assert_close(by_episode.sum(dim=1), whole.sum(dim=1))


@EVERY_LAW
def test_the_array_of_a_single_environment_can_be_changed(law: Any) -> None:
    env = TaskEnv(law)
    env.reset(seed=0)
    first = env.step(0)[-1]["regrets"]
    kept = first.copy()
    assert first.shape == (env.action_space.n,)
    first += 1.0
    env.reset(seed=0)
    assert (env.step(0)[-1]["regrets"] == kept).all()
    one = TaskEnv(law)
    one.reset(seed=0)
    one.step(0)[-1]["regrets"][:] = -1.0
    one.reset()
    assert (one.step(0)[-1]["regrets"] >= 0).all()
