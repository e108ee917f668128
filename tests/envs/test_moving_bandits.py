"""Two points of which one pays, against brute force over all cells within reach."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from pydantic import ValidationError
from stable_baselines3.common.env_checker import check_env as check_sb3
from torch import Tensor

from rl2meta.agents.references.anything import UniformAgent
from rl2meta.agents.references.points import Explorer
from rl2meta.envs.checking import check_distribution
from rl2meta.envs.moving_bandits import MOVES, MovingBandits, steps_to
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.trial import Agent

CPU, LAW = torch.device("cpu"), MovingBandits()
REACH = 14  # steps; the square ends after ten, and the largest radius below is not four
CELLS = torch.cartesian_prod(*[torch.arange(-REACH, REACH + 1)] * 2).double()  # [cells, 2], in steps
WALKED = (CELLS.unsqueeze(1) - CELLS).abs().sum(dim=2)  # [cells, cells], steps between two cells


def paying(points: Tensor, law: MovingBandits) -> Tensor:
    """Which cells are nearer to each point than the radius, bool [B, 2, cells]."""
    offset = law.side / 2 * points.double().unsqueeze(2) - law.step_size * CELLS
    return offset.square().sum(dim=3) < law.radius**2


def both(points: Tensor) -> TensorTasks:
    """The tasks in which point 0 is right, and then those in which point 1 is."""
    right = torch.arange(2).repeat_interleave(len(points))
    return TensorTasks({"right": right, "points": points.repeat(2, 1, 1)})


def played(agent: Agent[Any], tasks: TensorTasks, episodes: int, law: MovingBandits = LAW) -> Tensor:
    returns = RolloutWorker(law).run(agent, tasks, episodes, 0).per_episode("reward")
    assert returns is not None
    return returns.double()


@pytest.mark.parametrize(
    "law",
    [MovingBandits(horizon=8), MovingBandits(100.0, 30.0, 40.0, 3), MovingBandits(horizon=4, redraw=True)],
    ids=str,
)
def test_family_keeps_the_contract(law: MovingBandits) -> None:
    check_distribution(law, num_tasks=4)


def test_gymnasium_and_sb3_accept_the_single_environment() -> None:
    env = gym.make("rl2meta/MovingBandits-v0")
    check_env(env.unwrapped, skip_render_check=True)
    check_sb3(env.unwrapped, skip_render_check=True)
    tasks = TensorTasks({"right": torch.tensor([1]), "points": torch.tensor([[[0.5, 0.5], [0.3, -1.0]]])})
    observation, _ = env.reset(options={"tasks": tasks})
    assert observation.tolist() == pytest.approx([0, 0, 0.5, 0.5, 0.3, -1.0])
    for action, walker in ((1, [0.1, 0]), (4, [0.1, -0.1]), (0, [0.1, -0.1]), (2, [0, -0.1]), (3, [0, 0])):
        observation, reward, *_ = env.step(action)
        assert observation[:2] == pytest.approx(walker) and reward == 0
    # The right point is at (60, −200): (0, −220) is 63 away, (20, −220) 45.
    rewards = [env.step(np.int64(action))[1] for action in [4] * 11 + [1, 0]]
    assert rewards == [0] * 11 + [1, 1]


@pytest.mark.parametrize(
    "fault", [{"side": 0.0}, {"radius": -1.0}, {"horizon": 0}, {"redrawn": True}], ids=str
)
def test_nonsense_is_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MovingBandits(**fault)
    with pytest.raises(TypeError, match="expected TensorTasks with 'right', got int"):
        LAW.optimal_return(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("radius", [9.0, 14.2, 20.0, 50.0, 77.0])
def test_steps_are_those_to_the_nearest_paying_cell(radius: float) -> None:
    law = MovingBandits(radius=radius)
    points = sample_tasks(law, 150, 0, "test").parameters["points"]  # type: ignore[attr-defined]
    near = paying(points, law)
    wanted = torch.where(near, CELLS.abs().sum(dim=1), torch.inf).amin(dim=2)  # [B, 2]
    assert torch.equal(steps_to(law, law.side / 2 * points), wanted)
    assert wanted.isinf().any() == (radius < 20 / 2**0.5)


def test_ceilings() -> None:
    """The optimum by quadrature, by sampling, and elsewhere (43.83); random; memory, which reaches it."""
    tasks = sample_tasks(LAW, 6000, 0, "test")
    known = LAW.optimal_return(tasks).double()
    exactly = float(MovingBandits(redraw=True).optimal_return(tasks)[0])
    assert (
        abs(exactly - 43.83) < 0.04
        and abs(float(known.mean()) - exactly) < 4 * float(known.std()) / 6000**0.5
    )
    assert abs(float(played(UniformAgent(LAW.action_space), tasks[:2500], 1).mean()) - 2.4) < 0.3
    first, later = played(Explorer(LAW.model), tasks[:1000], 2).T  # type: ignore[arg-type]
    missed = known[:1000] - first  # of one task, so that luck of the places does not count
    assert exactly - float(missed.mean()) > 41.0 and torch.equal(later, known[:1000])


def test_the_explorer_is_near_the_best_first_visit() -> None:
    """The best first cell that tells: n steps to it, then k to the other point half of the time."""
    points = sample_tasks(LAW, 80, 1, "test").parameters["points"]  # type: ignore[attr-defined]
    near = paying(points, LAW)
    to_point = torch.stack([torch.where(n, WALKED, 99).amin(dim=1) for n in near.flatten(0, 1).unsqueeze(1)])
    other = to_point.reshape(-1, 2, len(CELLS)).amax(dim=1)  # of two points, the one that does not pay here
    first = CELLS.abs().sum(dim=1).clamp(min=1)
    best = torch.where(near.any(dim=1), LAW.horizon + 1 - first - other / 2, 0.0).amax(dim=1)  # [B]
    got = played(Explorer(LAW.model), both(points), 1).reshape(2, -1).mean(dim=0)
    assert (got <= best + 1e-6).all() and float((best - got).mean()) < 0.1


@pytest.mark.parametrize("radius", [8.0, 12.0])
def test_the_explorer_walks_although_a_point_cannot_be_reached(radius: float) -> None:
    """Steps of 20 do not come that near every point."""
    law = MovingBandits(radius=radius)
    tasks = sample_tasks(law, 500, 0, "test")
    known = law.optimal_return(tasks)
    assert known is not None and 0 < float((known == 0).double().mean()) < 0.7
    _, later = played(Explorer(law.model), tasks, 2, law).T  # type: ignore[arg-type]
    assert torch.equal(later, known.double())


def test_without_memory_half_is_lost() -> None:
    """Whoever goes to one cell and stays has all if its point is right, else only what both points pay."""
    points = sample_tasks(LAW, 1200, 2, "test").parameters["points"]  # type: ignore[attr-defined]
    near = paying(points, LAW)
    arrives = (LAW.horizon + 1 - CELLS.abs().sum(dim=1).clamp(min=1)).clamp(min=0)
    stays = (near.double().mean(dim=1) * arrives).amax(dim=1)  # [B], in the best cell
    assert 24.0 < float(stays.mean()) < 25.9


def test_regrets_sum_to_what_an_episode_missed() -> None:
    tasks = sample_tasks(LAW, 100, 0, "test")
    trial = RolloutWorker(LAW).run(UniformAgent(LAW.action_space), tasks, 2, 0)
    returns, regret = trial.per_episode("reward"), trial.per_episode("regret")
    assert returns is not None and regret is not None
    torch.testing.assert_close(returns + regret, LAW.optimal_return(tasks).unsqueeze(1).expand(-1, 2))


def test_redrawn_points_are_new_in_every_episode() -> None:
    law, tasks = MovingBandits(redraw=True, horizon=2), TensorTasks({"right": torch.arange(2).repeat(500)})
    envs = law.make_envs(1000, CPU)
    seen = [envs.reset(seed=0, options={"tasks": tasks})[0]]
    seen += [envs.step(torch.zeros(1000, dtype=torch.int64))[0] for _ in range(4)]
    first, same, second, _, third = (observation[:, 2:] for observation in seen)
    assert torch.equal(first, same) and first.abs().max() <= 1
    for one, other in ((first, second), (second, third), (first[:, :2], first[:, 2:])):
        assert (one != other).all() and abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 0.07
    assert torch.histc(second, 10, -1, 1).sub(400).abs().max() < 80


def test_the_law_of_the_tasks() -> None:
    tasks = sample_tasks(LAW, 20_000, 0, "train")
    assert abs(float(tasks.parameters["right"].double().mean()) - 0.5) < 0.015  # type: ignore[attr-defined]
    assert torch.histc(tasks.parameters["points"], 10, -1, 1).sub(8000).abs().max() < 350  # type: ignore[attr-defined]
    assert len(MOVES) == LAW.action_space.n  # type: ignore[attr-defined]
