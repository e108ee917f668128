"""Four rooms with slippery floors, against the tabular solver and by hand."""

from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from pydantic import ValidationError
from torch.nn import functional

from rl2meta.agents.references.anything import UniformAgent
from rl2meta.dynamic_programming import solve
from rl2meta.envs.checking import check_distribution
from rl2meta.envs.four_rooms import FourRooms, plan_of
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks

CPU = torch.device("cpu")
START, UP, DOWN, LEFT, RIGHT = 6 * 11 + 8, 0, 1, 2, 3


@pytest.mark.parametrize("law", [FourRooms(horizon=9), FourRooms(slip=0.0, horizon=7)], ids=str)
def test_family_keeps_the_contract(law: FourRooms) -> None:
    check_distribution(law, num_tasks=4)


def test_gymnasium_accepts_the_single_environment() -> None:
    env = gym.make("rl2meta/FourRooms-v0", slip=0.0)
    check_env(env.unwrapped, skip_render_check=True)
    goal = TensorTasks({"goal": torch.tensor([4 * 11 + 8])})
    assert env.reset(options={"tasks": goal})[0] == START
    # Walls left and right of the door; two steps up is the goal.
    steps = [env.step(action)[:2] for action in (LEFT, RIGHT, UP, UP, UP)]
    assert steps == [(START, 0), (START, 0), (START - 11, 0), (START - 22, 1), (START - 33, 0)]


@pytest.mark.parametrize("fault", [{"slip": 1.5}, {"horizon": 0}, {"test_fraction": 1.0}], ids=str)
def test_nonsense_is_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FourRooms(**fault)
    with pytest.raises(TypeError, match="expected TensorTasks with 'goal', got int"):
        FourRooms().optimal_return(3)  # type: ignore[arg-type]


def test_goals_are_all_cells_but_the_start_and_some_are_held_out() -> None:
    law = FourRooms()
    train, test = (set(law.tasks_of(split).parameters["goal"].tolist()) for split in ("train", "test"))
    assert len(train) == 82 and len(test) == 21 and not train & test and START not in train | test
    assert set(sample_tasks(law, 4000, 0, "test").parameters["goal"].tolist()) == test  # type: ignore[attr-defined]
    # Every goal can be reached, so its optimum is positive.
    assert len(train | test) == 103 and (law.optimal_return(law.tasks_of("train")) > 0).all()


def test_moves_slip_to_the_other_directions_equally_often() -> None:
    law, many = FourRooms(slip=0.3), 30_000
    envs = law.make_envs(many, CPU)
    envs.reset(seed=0, options={"tasks": TensorTasks({"goal": torch.zeros(many, dtype=torch.int64)})})
    for action in (UP, DOWN):  # in the door, left and right are walls
        envs.reset()
        cell = envs.step(torch.full((many,), action))[0]
        for place, chance in ((START - 11, 0.7), (START, 0.2), (START + 11, 0.1)):
            wanted = chance if action == UP else {START - 11: 0.1, START: 0.2, START + 11: 0.7}[place]
            assert float((cell == place).double().mean()) == pytest.approx(wanted, abs=0.012)


@pytest.mark.parametrize("law", [FourRooms(), FourRooms(slip=0.0, horizon=9)], ids=str)
def test_optimum_is_that_of_the_tabular_solver(law: FourRooms) -> None:
    next_cell, goals = plan_of(law).next_cell, torch.tensor([0, START - 11, 4 * 11 + 1, 120])
    directions = functional.one_hot(next_cell, 121).double()  # [cells, 4, cells]
    slips = directions.sum(dim=1, keepdim=True) - directions
    transitions = (1 - law.slip) * directions + law.slip / 3 * slips
    rewards = transitions[..., goals].movedim(-1, 0)  # [goals, cells, 4]
    value = solve(rewards, transitions.expand(len(goals), -1, -1, -1), law.horizon).value
    tasks = TensorTasks({"goal": goals})
    torch.testing.assert_close(law.optimal_return(tasks).double(), value[:, 0, START], rtol=1e-5, atol=1e-5)
    if law.slip == 0:  # 2 steps up and then, as there is no staying, every second step
        near = law.optimal_return(TensorTasks({"goal": torch.tensor([START - 22])}))
        assert float(near) == 4


def test_random_walks_and_the_regret_that_they_leave() -> None:
    law = FourRooms()
    tasks = sample_tasks(law, 1500, 0, "test")
    trial = RolloutWorker(law).run(UniformAgent(law.action_space), tasks, 1, 0)
    returns, regret = trial.per_episode("reward"), trial.per_episode("regret")
    assert returns is not None and regret is not None
    missed = (law.optimal_return(tasks) - returns.squeeze(1)) - regret.squeeze(1)  # mean 0: luck of the slips
    assert abs(float(missed.mean())) < 4 * float(missed.std()) / 1500**0.5
    assert 0.5 < float(returns.mean()) < 1.6
