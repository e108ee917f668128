"""Sinusoids: the law of the curves and of the points, what a guess costs, and what is revealed."""

import warnings
from math import pi, sin
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from pydantic import ValidationError
from stable_baselines3.common.env_checker import check_env as check_sb3
from torch import Tensor

from rl2meta.envs.checking import check_distribution
from rl2meta.envs.sinusoids import Sinusoids
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory

CPU = torch.device("cpu")


class Fitter:
    """Knows the curves."""

    phase = Phase(episodes=5, lanes_per_task=2)

    def __init__(self, amplitude: Tensor, phase: Tensor) -> None:
        self.amplitude, self.shift = (each.repeat_interleave(2).unsqueeze(1) for each in (amplitude, phase))

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> None:
        return None

    def act(self, carry: None, step: TimeStep) -> tuple[Choice, None]:
        guess = self.amplitude * torch.sin(step.observation - self.shift)
        return Choice(guess, guess), None

    def adapt(self, carry: None, trajectory: Trajectory) -> None:
        return None


def parameters(family: Sinusoids, num_tasks: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    tasks = sample_tasks(family, num_tasks, seed, "train")
    return tasks.parameters["amplitude"], tasks.parameters["phase"]  # type: ignore[attr-defined]


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    assert low <= float(values.min()) and float(values.max()) <= np.float32(high)
    counts = torch.histc(values, 10, low, high)
    chance = 4 * (len(values) * 0.1 * 0.9) ** 0.5
    assert ((counts - len(values) / 10).abs() < chance).all()


@pytest.mark.parametrize(
    "family",
    [Sinusoids(), Sinusoids(5.0, 10.0, phase_high=0.0), Sinusoids(x_low=5.0, x_high=10.0)],
    ids=str,
)
def test_family_keeps_the_contract(family: Sinusoids) -> None:
    check_distribution(family)


def test_gymnasium_and_sb3_accept_the_single_environment() -> None:
    env = gym.make("rl2meta/Sinusoid-v0")
    with warnings.catch_warnings():  # guesses are in the unit of y
        warnings.filterwarnings("ignore", message="(?s).*symmetric and normalized", category=UserWarning)
        check_env(env.unwrapped, skip_render_check=True)
        check_sb3(env.unwrapped, skip_render_check=True)
    scaled = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    check_sb3(scaled, skip_render_check=True)


def test_one_point_in_numpy() -> None:
    env = gym.make("rl2meta/Sinusoid-v0")
    tasks = TensorTasks({"amplitude": torch.tensor([2.0]), "phase": torch.tensor([1.0])})
    (x,), _ = env.reset(seed=0, options={"tasks": tasks})
    observation, reward, terminated, truncated, info = env.step(np.array([0.5], dtype=np.float32))
    y = 2 * sin(x - 1)
    assert info["target"].shape == (1,) and info["target"].dtype == np.float32
    assert info["target"] == pytest.approx([y], abs=1e-6)
    assert reward == info["expected_reward"] == -info["regret"]
    assert reward == pytest.approx(-((0.5 - y) ** 2), abs=1e-6)
    assert terminated and not truncated
    assert observation == [x]  # one step leads nowhere


def test_batched_environment_takes_arrays_of_any_precision() -> None:
    envs = gym.make_vec("rl2meta/Sinusoid-v0", num_envs=7)
    observation, _ = envs.reset(seed=0)
    assert observation.shape == (7, 1)
    _, reward, *_, info = envs.step(np.full((7, 1), 0.5))
    assert reward.dtype == info["target"].dtype == torch.float32
    torch.testing.assert_close(reward, -(0.5 - info["target"][:, 0]).square())


@pytest.mark.parametrize(
    "fault",
    [
        {"amplitude_low": -1.0},
        {"amplitude_low": 5.0},
        {"amplitude_high": 101.0},
        {"phase_high": 7.0},
        {"x_low": 5.0},
        {"x_high": float("inf")},
        {"amplitude": 3.0},
    ],
    ids=str,
)
def test_nonsense_is_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sinusoids(**fault)
    with pytest.raises(TypeError, match="expected TensorTasks with 'amplitude', 'phase', got int"):
        Sinusoids().optimal_return(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("bounds", [(0.1, 5.0, pi), (5.0, 10.0, 1.0)], ids=str)
def test_law_of_the_curves(bounds: tuple[float, float, float]) -> None:
    amplitude, phase = parameters(Sinusoids(*bounds), 40_000)
    assert amplitude.shape == phase.shape == (40_000,)
    assert_uniform(amplitude, *bounds[:2])
    assert_uniform(phase, 0.0, bounds[2])
    assert abs(np.corrcoef(amplitude, phase)[0, 1]) < 4 / 200


@pytest.mark.parametrize(("low", "high"), [(-5.0, 5.0), (-0.3, 999.7)])
def test_law_of_the_points(low: float, high: float) -> None:
    family = Sinusoids(x_low=low, x_high=high)
    envs = family.make_envs(20_000, CPU)
    points = [envs.reset(seed=0)[0]]
    points += [envs.step(torch.zeros(20_000, 1))[0] for _ in range(2)]
    for x in points:
        assert_uniform(x[:, 0], low, high)
    assert abs(np.corrcoef(points[0][:, 0], points[1][:, 0])[0, 1]) < 4 / 20_000**0.5
    again = family.make_envs(20_000, CPU)
    assert torch.equal(again.reset(seed=0)[0], points[0])
    assert not torch.equal(again.reset(seed=1)[0], points[0])


def test_equal_seeds_draw_equal_curves() -> None:
    for first, again, other in zip(*(parameters(Sinusoids(), 5, seed) for seed in (0, 0, 1)), strict=True):
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_guesses_beyond_the_bounds_are_clipped() -> None:
    envs = Sinusoids().make_envs(2, CPU)
    envs.reset(seed=0)
    _, reward, *_, info = envs.step(torch.tensor([[1e6], [-1e6]]))
    torch.testing.assert_close(reward, -(torch.tensor([100.0, -100.0]) - info["target"][:, 0]).square())


def test_trials_reveal_targets_and_who_knows_the_curve_has_no_regret() -> None:
    family = Sinusoids()
    tasks = sample_tasks(family, 50, 0, "test")
    agent = Fitter(tasks.parameters["amplitude"], tasks.parameters["phase"])  # type: ignore[attr-defined]
    trial = RolloutWorker(family).run(agent, tasks, 20, 0)
    assert [phase.reward.shape for phase in trial.phases] == [(5, 100), (5, 100)]
    for phase in trial.phases:
        torch.testing.assert_close(phase.truth["target"], phase.action)
        assert phase.truth["target"].abs().max() <= 5
        assert phase.last.all() and phase.mask.all()
        assert (
            len(set(phase.inputs.observation.flatten().tolist())) > 490
        )  # each lane and episode has a point of its own
        assert phase.truth["regret"].max() < 1e-10
    assert family.optimal_return(tasks).tolist() == [0.0] * 50
    assert family.bayes_optimal_return(3) is None
