"""Point navigation: its law, its rewards and ends by hand, and its optimum against one found by search."""

from functools import cache
from math import hypot
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from pydantic import ValidationError
from stable_baselines3.common.env_checker import check_env as check_sb3
from torch import Tensor
from torch.nn import functional as F

from rl2meta.envs.checking import check_distribution
from rl2meta.envs.navigation import PointNavigation, best_return
from rl2meta.parts import at_most
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory

CPU = torch.device("cpu")
COARSE = PointNavigation(side=4.0, step_size=0.5, goal_radius=0.3, horizon=4)


class Greedy:
    """Knows the goals and goes for them; asks for more than the bounds allow."""

    phase = Phase(episodes=2)

    def __init__(self, goals: Tensor, step_size: float) -> None:
        self.goals, self.step_size = goals, step_size

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> None:
        return None

    def act(self, carry: None, step: TimeStep) -> tuple[Choice, None]:
        action = (self.goals - step.observation) / self.step_size
        return Choice(action, action), None

    def adapt(self, carry: None, trajectory: Trajectory) -> None:
        return None


class Wanderer(Greedy):
    """Acts at random, beyond the bounds too."""

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Any:
        return generator

    def act(self, carry: Any, step: TimeStep) -> tuple[Choice, Any]:
        action = 2.4 * torch.rand(self.goals.shape, generator=carry) - 1.2
        return Choice(action, action), carry


def at(*goals: tuple[float, float]) -> TensorTasks:
    return TensorTasks({"goal": torch.tensor(goals)})


def play(family: PointNavigation, tasks: TensorTasks, actions: list[Any]) -> list[tuple[Any, ...]]:
    envs = family.make_envs(len(tasks), CPU)
    envs.reset(seed=0, options={"tasks": tasks})
    return [envs.step(torch.as_tensor(action)) for action in actions]


def searched(family: PointNavigation, goal: tuple[float, float]) -> Any:
    """V*_h at (i, j) half steps, by trying every action of −1, −0.5, 0, 0.5 and 1 along both axes."""
    half = family.step_size / 2

    @cache
    def value(left: int, i: int, j: int) -> float:
        if left == 0:
            return 0.0
        return max(worth(left, i + di, j + dj) for di in range(-2, 3) for dj in range(-2, 3))

    def worth(left: int, i: int, j: int) -> float:
        distance = hypot(half * i - goal[0], half * j - goal[1])
        return -distance + (0.0 if distance < family.goal_radius else value(left - 1, i, j))

    return value


@pytest.mark.parametrize(
    "family",
    [
        PointNavigation(),
        COARSE,
        PointNavigation(goal_radius=0.4, horizon=30),
        PointNavigation(goal_radius=0.0, horizon=7),
        PointNavigation(horizon=1),
    ],
    ids=str,
)
def test_family_keeps_the_contract(family: PointNavigation) -> None:
    check_distribution(family)


def test_gymnasium_and_sb3_accept_the_single_environment() -> None:
    env = gym.make("rl2meta/PointNavigation-v0", horizon=9)
    check_env(env.unwrapped, skip_render_check=True)
    check_sb3(env.unwrapped, skip_render_check=True)
    observation, _ = env.reset(seed=3, options={"tasks": at((0.3, -0.4))})
    assert observation.dtype == np.float32 and observation.tolist() == [0, 0]
    observation, reward, *_, info = env.step(np.array([1, -1], dtype=np.float32))
    assert observation == pytest.approx([0.1, -0.1])
    assert reward == pytest.approx(-hypot(0.2, 0.3)) and info["regret"] == pytest.approx(0, abs=1e-6)


def test_batched_environment_takes_arrays_of_any_precision() -> None:
    envs = gym.make_vec("rl2meta/PointNavigation-v0", num_envs=7, side=2.0)
    observation, _ = envs.reset(seed=0)
    assert observation.tolist() == [[0, 0]] * 7
    observation, reward, *_ = envs.step(np.full((7, 2), 0.5))
    assert observation.dtype == reward.dtype == torch.float32
    torch.testing.assert_close(observation, torch.full((7, 2), 0.05))


@pytest.mark.parametrize(
    "fault",
    [
        {"side": 0.0},
        {"step_size": -0.1},
        {"goal_radius": -1.0},
        {"horizon": 0},
        {"side": "1"},
        {"sides": 1.0},
    ],
    ids=str,
)
def test_nonsense_is_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PointNavigation(**fault)
    with pytest.raises(TypeError, match="expected TensorTasks with 'goal', got int"):
        PointNavigation().optimal_return(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [1.0, 3.0])
def test_law_of_the_goals(side: float) -> None:
    goals = sample_tasks(PointNavigation(side=side), 40_000, 0, "train").parameters["goal"]  # type: ignore[attr-defined]
    assert goals.shape == (40_000, 2) and goals.dtype == torch.float32
    assert goals.abs().max() <= side / 2
    for axis in goals.T:
        counts = torch.histc(axis / side, 10, -0.5, 0.5)
        assert ((counts - 4000).abs() < 4 * (40_000 * 0.1 * 0.9) ** 0.5).all()
    assert abs(np.corrcoef(goals.T)[0, 1]) < 4 / 200


def test_equal_seeds_draw_equal_goals() -> None:
    first, again, other = (
        sample_tasks(PointNavigation(), 5, seed, "test").parameters["goal"]  # type: ignore[attr-defined]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_moves_are_clipped_and_pay_the_distance_afterwards() -> None:
    tasks = at((0.5, 0.0), (0.0, 0.25))
    steps = play(PointNavigation(), tasks, [[[1.0, 0.0], [5.0, 1.0]], [[-1.0, 0.5], [-1.0, -9.0]]])
    torch.testing.assert_close(steps[0][0], torch.tensor([[0.1, 0.0], [0.1, 0.1]]))
    torch.testing.assert_close(steps[0][1], -torch.tensor([0.4, hypot(0.1, 0.15)]))
    torch.testing.assert_close(steps[1][0], torch.tensor([[0.0, 0.05], [0.0, 0.0]]))
    torch.testing.assert_close(steps[1][1], -torch.tensor([hypot(0.5, 0.05), 0.25]))
    for _, reward, terminated, truncated, info in steps:
        assert torch.equal(info["expected_reward"], reward)
        assert not (terminated | truncated).any()


def test_regret_by_hand() -> None:
    # Best: distances 0.2, 0.1, 0. After a wrong step: 0.4 is paid, then 0.3, 0.2, 0.1 and 0 are to come.
    right, wrong = ([[sign, 0.0]] for sign in (1.0, -1.0))
    for actions, regret in (([right], 0.0), ([wrong], 0.7), ([wrong, right, [[0.0, 0.0]]], 0.3)):
        info = play(PointNavigation(), at((0.3, 0.0)), actions)[-1][-1]
        assert float(info["regret"]) == pytest.approx(regret, abs=1e-6)
    short = PointNavigation(horizon=2)  # 0.2 and 0.1 at best, but 0.4 and 0.3
    assert float(play(short, at((0.3, 0.0)), [wrong])[-1][-1]["regret"]) == pytest.approx(0.4, abs=1e-6)


def test_episodes_end_near_the_goal_or_at_the_horizon() -> None:
    family = PointNavigation(goal_radius=0.05, horizon=3)
    stay, there = [0.0, 0.0], [1.0, 0.0]
    tasks = at((0.13, 0.0), (0.0, 0.0), (0.16, 0.0), (0.14, 0.04))
    steps = play(family, tasks, [[there, stay, there, there]] * 3)
    assert [step[2].tolist() for step in steps] == [
        [True, True, False, False],  # 0.04 along both axes is no nearer than 0.0566
        [True, True, True, False],
        [True, True, False, False],
    ]
    assert [step[3].tolist() for step in steps] == [[False] * 4] * 2 + [[False] * 3 + [True]]
    torch.testing.assert_close(steps[0][4]["final_obs"][0], torch.tensor([0.1, 0.0]))
    assert steps[0][0][0].tolist() == [0, 0] and steps[2][0][3].tolist() == [0, 0]


def test_what_is_done_to_an_observation_moves_no_point() -> None:
    envs = COARSE.make_envs(3, CPU)
    observation, _ = envs.reset(seed=0)
    for _ in range(2 * COARSE.horizon):
        observation += 100
        observation, *_, info = envs.step(torch.zeros(3, 2))
        assert not observation.any() and not info["final_obs"].any()


@pytest.mark.parametrize("radius", [0.0, 0.01, 0.3, 1.2])
@pytest.mark.parametrize("horizon", [1, 2, 4])
def test_optimum_is_the_one_that_search_finds(radius: float, horizon: int) -> None:
    family = PointNavigation(4.0, 0.5, radius, horizon)
    reachable = [(0.0, 0.0), (0.25, -0.75), (1.0, 1.0), (-0.5, 0.0), (2.25, -0.75), (0.0, 3.0)]
    optimum = family.optimal_return(at(*reachable))
    for goal, value in zip(reachable, optimum.tolist(), strict=True):
        assert value == pytest.approx(searched(family, goal)(horizon, 0, 0), abs=1e-5)
    elsewhere = sample_tasks(family, 10, 0, "test")
    goals, optimum = elsewhere.parameters["goal"], family.optimal_return(elsewhere)  # type: ignore[attr-defined]
    for goal, value in zip(goals.tolist(), optimum.tolist(), strict=True):
        assert value >= searched(family, tuple(goal))(horizon, 0, 0) - 1e-5  # whose actions are but a few


def test_regret_in_every_state_is_the_one_that_search_finds() -> None:
    goals = [(0.25, -0.75), (1.0, 1.0), (-0.5, 0.0), (2.25, -0.75)] * 50
    envs, values = COARSE.make_envs(len(goals), CPU), {goal: searched(COARSE, goal) for goal in goals}
    observation, _ = envs.reset(seed=0, options={"tasks": at(*goals)})
    draws = generator(1)
    left = torch.full((len(goals),), COARSE.horizon)
    for _ in range(2 * COARSE.horizon):
        actions = torch.randint(-2, 3, (len(goals), 2), generator=draws) / 2
        before = (observation / 0.25).round().int().tolist()
        observation, reward, terminated, truncated, info = envs.step(actions)
        after = (info["final_obs"] / 0.25).round().int().tolist()
        for i, goal in enumerate(goals):
            rest = 0.0 if terminated[i] else values[goal](int(left[i]) - 1, *after[i])
            regret = values[goal](int(left[i]), *before[i]) - float(reward[i]) - rest
            assert float(info["regret"][i]) == pytest.approx(regret, abs=1e-5)
        left = torch.where(terminated | truncated, COARSE.horizon, left - 1)


@pytest.mark.parametrize("family", [PointNavigation(), PointNavigation(side=30.0), COARSE], ids=str)
def test_the_greedy_agent_earns_the_optimum(family: PointNavigation) -> None:
    tasks = sample_tasks(family, 200, 0, "test")
    agent = Greedy(tasks.parameters["goal"], family.step_size)  # type: ignore[attr-defined]
    trial = RolloutWorker(family).run(agent, tasks, 4, 0)
    returns, regret, steps = (trial.per_episode(name) for name in ("reward", "regret", "mask"))
    optimum = family.optimal_return(tasks).unsqueeze(1).expand(200, 4)
    torch.testing.assert_close(returns, optimum, atol=1e-5, rtol=1e-5)
    assert regret is not None  # what float32 rounds off in each of its steps adds up
    assert (regret <= 1e-6 - 1e-5 * optimum).all()
    needed = (agent.goals.abs().amax(dim=1) / family.step_size).ceil()
    if family == PointNavigation():  # 1 to 5 steps
        assert steps is not None and ((steps - needed.unsqueeze(1)) <= 0).all()
        assert set(steps.flatten().tolist()) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("family", [PointNavigation(), PointNavigation(goal_radius=0.2), COARSE], ids=str)
def test_regrets_sum_to_what_an_episode_missed(family: PointNavigation) -> None:
    tasks = sample_tasks(family, 300, 0, "test")
    agent = Wanderer(tasks.parameters["goal"], family.step_size)  # type: ignore[attr-defined]
    trial = RolloutWorker(family).run(agent, tasks, 4, 0)
    returns, regret, steps = (trial.per_episode(name) for name in ("reward", "regret", "mask"))
    assert returns is not None and steps is not None
    missed = family.optimal_return(tasks).unsqueeze(1) - returns
    torch.testing.assert_close(regret, missed, atol=1e-4, rtol=1e-5)
    assert steps.max() == family.horizon and (family.goal_radius < 0.1 or steps.min() < family.horizon)


def test_optimum_does_not_depend_on_how_many_are_valued_at_once() -> None:
    tasks = sample_tasks(COARSE, 100, 0, "test")
    whole = COARSE.optimal_return(tasks)
    with at_most(8 * COARSE.horizon * 16):
        assert torch.equal(COARSE.optimal_return(tasks), whole)


def explicit(law: PointNavigation, offset: list[float], elapsed: float) -> float:
    """V*_h(d) as it is defined, step by step through the whole horizon."""
    value = 0.0
    for t in range(1, law.horizon - int(elapsed) + 1):
        distance = hypot(*(max(0.0, abs(along) - t * law.step_size) for along in offset))
        value -= distance
        if distance < law.goal_radius:
            break
    return value


@pytest.mark.parametrize(
    "family",
    [
        PointNavigation(),
        PointNavigation(goal_radius=0.0, horizon=30),
        PointNavigation(step_size=1e-3),
        COARSE,
    ],
    ids=str,
)
@pytest.mark.parametrize("reach", [0.0, 0.05, 0.7, 5.0, 1e3])
def test_optimum_is_the_sum_over_the_whole_horizon(family: PointNavigation, reach: float) -> None:
    source = generator(1)
    offset = reach * (2 * torch.rand(60, 2, generator=source, dtype=torch.float64) - 1)
    offset[0], offset[1, 0], offset[2] = 0.0, 0.0, reach
    offset[3] = offset[3].div(family.step_size).round() * family.step_size  # whole steps away
    elapsed = torch.randint(0, family.horizon + 1, (60,), generator=source)
    value = best_return(family, offset, elapsed.double())
    wanted = [explicit(family, *each) for each in zip(offset.tolist(), elapsed.tolist(), strict=True)]
    torch.testing.assert_close(value, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    rounded = torch.cat([offset, torch.full((1, 2), 1e6)]).float(), F.pad(elapsed, (0, 1)).float()
    among = best_return(family, *rounded)[:-1]  # a far point beside them takes all of the horizon
    torch.testing.assert_close(best_return(family, *(each[:-1] for each in rounded)), among)


@pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_points_that_are_nowhere_do_not_disturb_the_others(lost: float) -> None:
    family, offset = PointNavigation(), torch.tensor([[0.3, -0.4], [0.0, 0.0], [2.0, 0.1]])
    elapsed = torch.tensor([0.0, 3.0, 99.0])
    together = best_return(
        family, torch.cat([offset, torch.tensor([[lost, 0.1]])]), torch.cat([elapsed, elapsed[:1]])
    )
    torch.testing.assert_close(together[:3], best_return(family, offset, elapsed))
    assert not together[3] > -1e30
    assert best_return(family, torch.full((1, 2), lost), elapsed[:1]).shape == (1,)


def test_no_tasks_have_no_optimum() -> None:
    family = PointNavigation()
    assert family.optimal_return(sample_tasks(family, 0, 0, "test")).shape == (0,)
