"""Bandits pay what their means say, in both Gymnasium views."""

import json
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import rl2meta.envs  # noqa: F401 - registers the ids
from rl2meta.envs.bandits import BernoulliBandits, GaussianBandits, Pulls
from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.tasks import TensorTasks, sample_tasks

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("family", [BernoulliBandits, GaussianBandits])
IDS = pytest.mark.parametrize("env_id", ["rl2meta/BernoulliBandit-v0", "rl2meta/GaussianBandit-v0"])


def means(*rows: list[float]) -> dict[str, Any]:
    return {"tasks": TensorTasks({"means": torch.tensor(rows)})}


@pytest.mark.parametrize(("family", "std"), [(BernoulliBandits, None), (GaussianBandits, 1.0)])
def test_rewards_have_the_mean_and_spread_of_the_law(family: Any, std: float | None) -> None:
    n, p = 20_000, 0.3
    envs = family(num_arms=2).make_envs(n, CPU)
    envs.reset(seed=0, options={"tasks": TensorTasks({"means": torch.tensor([[p, 0.9]]).repeat(n, 1)})})
    _, reward, *_ = envs.step(torch.zeros(n, dtype=torch.int64))
    std = std if std is not None else (p * (1 - p)) ** 0.5
    assert abs(float(reward.mean()) - p) < 4 * std / n**0.5
    assert abs(float(reward.std()) - std) < 4 * std / n**0.5
    if family is BernoulliBandits:
        assert set(reward.tolist()) == {0.0, 1.0}


@BOTH
def test_tasks_follow_the_prior(family: Any) -> None:
    drawn = sample_tasks(family(num_arms=4), 10_000, 0, "train").parameters["means"]
    mean, std = (0.5, 12**-0.5) if family is BernoulliBandits else (0.0, 1.0)
    assert abs(float(drawn.mean()) - mean) < 4 * std / drawn.numel() ** 0.5
    assert abs(float(drawn.std()) - std) < 0.01
    correlations = torch.corrcoef(drawn.T) - torch.eye(4)
    assert correlations.abs().max() < 0.05


@BOTH
def test_regret_is_the_gap_to_the_best_arm(family: Any) -> None:
    rows = [[0.1, 0.7, 0.4], [0.9, 0.2, 0.3]]
    envs = family(num_arms=3).make_envs(2, CPU)
    envs.reset(seed=0, options=means(*rows))
    *_, terminated, truncated, info = envs.step(torch.tensor([2, 0]))
    torch.testing.assert_close(info["expected_reward"], torch.tensor([0.4, 0.9]))
    torch.testing.assert_close(info["regret"], torch.tensor([0.3, 0.0]))
    assert terminated.all()
    assert not truncated.any()


@BOTH
def test_an_ended_episode_restarts_on_the_same_task(family: Any) -> None:
    distribution = family(num_arms=3)
    envs = distribution.make_envs(4, CPU)
    tasks = sample_tasks(distribution, 4, 0, "train")
    envs.reset(seed=1, options={"tasks": tasks})
    arm = torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        *_, info = envs.step(arm)
        assert torch.equal(info["expected_reward"], tasks.parameters["means"][torch.arange(4), arm])


@BOTH
def test_seed_draws_tasks_and_bare_reset_keeps_them(family: Any) -> None:
    envs = family(num_arms=3).make_envs(2, CPU)
    envs.reset(seed=0)
    first = envs.tasks.parameters["means"]
    envs.reset()
    assert torch.equal(envs.tasks.parameters["means"], first)
    envs.reset(seed=1)
    assert not torch.equal(envs.tasks.parameters["means"], first)
    envs.reset(seed=0)
    assert torch.equal(envs.tasks.parameters["means"], first)


@BOTH
def test_equal_seeds_give_equal_rewards_and_others_do_not(family: Any) -> None:
    distribution = family(num_arms=2)
    tasks = sample_tasks(distribution, 64, 0, "train")

    def rewards(seed: int) -> torch.Tensor:
        envs = distribution.make_envs(64, CPU)
        envs.reset(seed=seed, options={"tasks": tasks})
        return envs.step(torch.zeros(64, dtype=torch.int64))[1]

    assert torch.equal(rewards(5), rewards(5))
    assert not torch.equal(rewards(5), rewards(6))


@IDS
def test_single_view_is_the_batch_of_one(env_id: str) -> None:
    single = gym.make(env_id, num_arms=3).unwrapped
    single.reset(seed=3, options=means([0.2, 0.5, 0.7]))
    batch = gym.make_vec(env_id, num_envs=1, num_arms=3)
    inner = int(np.random.default_rng(3).integers(2**62))  # the first draw of the single view's np_random
    batch.reset(seed=inner, options=means([0.2, 0.5, 0.7]))
    for arm in [0, 1, 2, 2, 1, 0, 0]:
        observation, reward, terminated, truncated, info = single.step(arm)
        single.reset()
        obs_b, reward_b, terminated_b, truncated_b, info_b = batch.step(torch.tensor([arm]))
        assert (observation, reward) == (obs_b.item(), reward_b.item())
        assert (terminated, truncated) == (terminated_b.item(), truncated_b.item())
        assert info.pop("regrets").tolist() == info_b["regrets"][0].tolist()
        assert info == {name: info_b[name].item() for name in ("expected_reward", "regret")}


@IDS
def test_gymnasium_and_sb3_accept_the_single_view(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, num_arms=5).unwrapped)
        sb3_check_env(gym.make(env_id, num_arms=5).unwrapped)


@IDS
def test_make_vec_finds_the_batched_view(env_id: str) -> None:
    envs = gym.make_vec(env_id, num_envs=7, num_arms=4)
    assert envs.metadata["autoreset_mode"] is gym.vector.AutoresetMode.SAME_STEP
    assert envs.single_action_space == gym.spaces.Discrete(4)
    observation, info = envs.reset(seed=0)
    assert observation.tolist() == [0] * 7
    assert info == {}
    observation, reward, *_ = envs.step(envs.action_space.sample())
    assert observation.tolist() == [0] * 7
    assert reward.shape == (7,)


@BOTH
@pytest.mark.parametrize(
    ("num_arms", "message"),
    [(1, "greater than or equal to 2"), (2.0, "valid integer"), ("3", "valid integer"), (True, "integer")],
)
def test_bad_num_arms_is_refused(family: Any, num_arms: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        family(num_arms=num_arms)


@BOTH
def test_unknown_argument_is_refused(family: Any) -> None:
    with pytest.raises(ValidationError, match=r"arms[\s\S]*[Uu]nexpected keyword"):
        family(num_arms=2, arms=3)


@IDS
@pytest.mark.parametrize("action", [5, -1, 0.0, None])
def test_bad_action_is_refused(env_id: str, action: Any) -> None:
    env = gym.make(env_id, num_arms=5, disable_env_checker=True).unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected an action in Discrete\(5\), got"):
        env.step(action)


@BOTH
def test_misuse_of_tasks_is_refused(family: Any) -> None:
    envs = family(num_arms=2).make_envs(2, CPU)
    with pytest.raises(gym.error.ResetNeeded, match="expected a reset before the first step"):
        envs.step(torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="expected 2 tasks, one per environment, got 1"):
        envs.reset(seed=0, options=means([0.1, 0.2]))
    with pytest.raises(TypeError, match="expected TensorTasks, got dict"):
        envs.reset(seed=0, options={"tasks": {"means": [[0.1, 0.2]] * 2}})
    with pytest.raises(TypeError, match="expected TensorTasks with 'means', got dict"):
        family(num_arms=2).optimal_return({})


def test_optimal_return_is_the_best_mean() -> None:
    tasks = means([0.1, 0.7], [0.9, 0.2])["tasks"]
    torch.testing.assert_close(GaussianBandits(num_arms=2).optimal_return(tasks), torch.tensor([0.7, 0.9]))
    assert GaussianBandits(num_arms=2).bayes_optimal_return(3) is None


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=9))
def test_tasks_survive_json_to_the_bit(values: list[float]) -> None:
    tasks = TensorTasks({"means": torch.tensor([values], dtype=torch.float32)})
    revived = TensorTasks.from_dict(json.loads(json.dumps(tasks.to_dict())))
    got, expected = revived.parameters["means"], tasks.parameters["means"]
    assert got.dtype == expected.dtype
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32))  # −0.0 is not 0.0


def test_tasks_of_another_family_are_refused():
    envs = BernoulliBandits(num_arms=3).make_envs(2, torch.device("cpu"))
    for wrong in ({"means": torch.rand(2, 4)}, {"p": torch.rand(2, 3)}, {"means": torch.ones(2, 3).long()}):
        with pytest.raises(ValueError, match="expected parameters"):
            envs.reset(seed=0, options={"tasks": TensorTasks(wrong)})


def test_the_default_laws_are_those_of_the_published_figures() -> None:
    """Bit for bit what torch draws, whatever the other bounds do."""

    def drawn(family: Any) -> torch.Tensor:
        return family.sample(1000, torch.Generator().manual_seed(3), "train").parameters["means"]

    source = torch.Generator().manual_seed(3)
    assert torch.equal(drawn(BernoulliBandits(num_arms=4)), torch.rand(1000, 4, generator=source))
    source = torch.Generator().manual_seed(3)
    assert torch.equal(drawn(GaussianBandits(num_arms=4)), torch.randn(1000, 4, generator=source))


@pytest.mark.parametrize(("low", "high"), [(0.4, 0.5), (0.0, 0.1), (0.1, 1.0)])
def test_arms_are_drawn_between_their_bounds(low: float, high: float) -> None:
    drawn = sample_tasks(BernoulliBandits(3, low, high), 20_000, 0, "test").parameters["means"]
    assert low - 1e-6 <= drawn.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < drawn.max() <= min(high + 1e-6, 1)
    assert abs(float(drawn.mean()) - (low + high) / 2) < 4 * (high - low) / (12 * drawn.numel()) ** 0.5


def test_other_bounds_have_another_bayes_optimum() -> None:
    assert BernoulliBandits(2).bayes_optimal_return(1) == 0.5
    assert BernoulliBandits(2, low=0.5).bayes_optimal_return(1) == pytest.approx(0.75)
    assert BernoulliBandits(2, high=0.5).bayes_optimal_return(1) == pytest.approx(0.25)
    assert BernoulliBandits(2, 0.2, 0.7).bayes_optimal_return(500) is None  # intractable, as on [0, 1]


def test_a_mean_moves_all_gaussian_arms() -> None:
    moved = sample_tasks(GaussianBandits(3, mean=-2.5), 100, 0, "test").parameters["means"]
    centred = sample_tasks(GaussianBandits(3), 100, 0, "test").parameters["means"]
    torch.testing.assert_close(moved, centred - 2.5)


@pytest.mark.parametrize(
    ("family", "bounds", "message"),
    [
        (BernoulliBandits, {"low": 0.6, "high": 0.4}, r"low < high \(here 0.6 and 0.4\)"),
        (BernoulliBandits, {"low": 0.5, "high": 0.5}, "low < high"),
        (BernoulliBandits, {"low": 1.0}, "low < high"),
        (BernoulliBandits, {"low": -0.1}, "low\n.*greater than or equal to 0"),
        (BernoulliBandits, {"high": 1.1}, "high\n.*less than or equal to 1"),
        (BernoulliBandits, {"high": float("nan")}, "high\n.*finite"),
        (GaussianBandits, {"mean": float("inf")}, "mean\n.*finite"),
    ],
)
def test_bad_bounds_are_refused(family: Any, bounds: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        family(**bounds)


@BOTH
def test_every_pull_is_an_episode_and_a_reset_counts_none(family: Any) -> None:
    envs = family(num_arms=2).make_envs(3, CPU)
    envs.reset(seed=0)
    for pulls in range(1, 5):
        *_, terminated, truncated, _ = envs.step(torch.tensor([0, 1, 0]))
        assert terminated.tolist() == [True] * 3 and truncated.tolist() == [False] * 3
        assert envs._episode.tolist() == [pulls] * 3
    for _ in range(2):
        envs.reset()
        assert envs._episode.tolist() == [4] * 3  # the fifth has begun, and no pull of it was made
    envs.reset(options={"episodes_before": torch.tensor([7, 8, 9])})
    envs.step(torch.tensor([0, 1, 0]))
    assert envs._episode.tolist() == [8, 9, 10]
    envs.reset(options={"tasks": envs.tasks})
    assert envs._episode.tolist() == [0] * 3


class Counted(BernoulliBandits):
    """Bandits that show the number of the episode."""

    longest = 1

    @property
    def horizon(self) -> int:
        return self.longest

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        return TensorVectorEnv(self, _Numbers(), num_envs, device)


class CountedToTwo(Counted):
    """The same, but for what the law says of how long an episode may be."""

    longest = 2


class _Numbers(Pulls):
    """Every pull ends its episode by termination, or every other one."""

    terminates = True

    def __init__(self) -> None:
        super().__init__("bernoulli")

    def begin(self, tasks: TensorTasks, episode: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return episode.clone()

    def step(
        self, tasks: TensorTasks, state: torch.Tensor, action: torch.Tensor, generator: torch.Generator
    ) -> Transition:
        end = super().step(tasks, state, action, generator)
        return end if self.terminates else end._replace(terminated=(action + state) % 2 == 0)


def _lived(envs: TensorVectorEnv) -> list[Any]:
    """What is seen in a few episodes, with resets between them."""
    seen: list[Any] = [envs.reset(seed=3)[0]]
    for step in range(6):
        observation, *rest, info = envs.step(torch.tensor([0, 1, step % 2]))
        seen += [observation, *rest, *info.values()]
        if step % 3 == 1:
            seen.append(envs.reset()[0])
    return seen


def test_episodes_of_one_step_are_what_longer_ones_are_that_end_at_once() -> None:
    short, longer = (law(num_arms=2).make_envs(3, CPU) for law in (Counted, CountedToTwo))
    for one, other in zip(_lived(short), _lived(longer), strict=True):
        assert torch.equal(one, other)


def test_an_only_step_that_does_not_terminate_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Numbers, "terminates", False)
    envs = Counted(num_arms=2).make_envs(2, CPU)
    envs.reset(seed=0)
    for number in range(4):
        observation, _, terminated, truncated, info = envs.step(torch.tensor([0, 1]))
        assert terminated.tolist() == [number % 2 == 0, number % 2 == 1]
        assert torch.equal(truncated, ~terminated)
        assert info["final_obs"].tolist() == [number] * 2 and observation.tolist() == [number + 1] * 2
