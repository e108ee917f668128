"""Units: nothing that an agent does depends on the unit or the zero of what it sees, does and earns."""

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.networks import Gaussian, action_head
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.units import RAW, ActionUnits, ObservationUnits, RewardUnits, UnitsConfig, action_units
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings


class Dial(gym.Env[Any, Any]):
    """Turn a dial to a hidden place; what is seen, done and earned has a unit and a zero."""

    def __init__(self, place: float, reward: tuple[float, float], action: tuple[float, float]) -> None:
        self.place, self.reward, self.action = place, reward, action
        low, high = (np.full(1, action[0] + action[1] * x, np.float32) for x in (-1, 1))
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        turned = (float(action[0]) - self.action[0]) / self.action[1]
        zero, unit = self.reward
        return np.zeros(1, np.float32), zero - unit * abs(turned - self.place), False, False, {}


class Dials:
    horizon = 4

    def __init__(self, reward: tuple[float, float] = (0, 1), action: tuple[float, float] = (0, 1)) -> None:
        self.reward, self.action = reward, action

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        return {"place": float(rng.choice([-0.5, 0.5]))}

    def make_env(self, task: Any) -> Dial:
        return Dial(task["place"], self.reward, self.action)


def learnt(agent: str, law: PluggedIn, updates: int) -> Tensor:
    """Train and return the mean actions of each update's last trials, in the unit of the dial."""
    if agent == "rl2":
        config: Any = RL2Config.model_validate(
            {"core": {"hidden_size": 16}, "initial_deviation": 0.5, "entropy_coefficient": 0.0}
        )
        learner: Any = rl2_learner(law.observation_space, law.action_space, config)
    else:
        config = MAMLTRPOConfig(hidden_sizes=[8], episodes_per_phase=4, initial_deviation=0.5)
        learner = MAMLTRPOLearner(law.observation_space, law.action_space, config)
    episodes = 2 if agent == "rl2" else 8
    rows: list[dict[str, Any]] = []
    meta_train(
        learner,
        law,
        RolloutWorker(law),
        Budget(updates, 16, episodes),
        0,
        lambda row: rows.append(row) or False,
    )
    tasks = sample_tasks(law, 16, 1, "test")
    trial = RolloutWorker(law).run(learner.agent, tasks, episodes, 2)
    zero, unit = law.family.action
    return (trial.phases[-1].action - zero) / unit


def law(**units: tuple[float, float]) -> PluggedIn:
    return PluggedIn(Dials(**units), WorkerSettings(processes=0))


COPIES = [
    {"reward": (0.0, 1e-3)},
    {"reward": (0.0, 1e4)},
    {"reward": (-1000.0, 1.0)},
    {"reward": (1000.0, 10.0)},
    {"action": (550.0, 450.0)},
    {"action": (-3.0, 1e-2)},
    {"reward": (-100.0, 1e3), "action": (7.0, 0.5)},
]


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return {agent: learnt(agent, law(), 3) for agent in ("rl2", "maml_trpo")}


@pytest.mark.parametrize("agent", ["rl2", "maml_trpo"])
@pytest.mark.parametrize("units", COPIES, ids=str)
def test_a_copy_in_other_units_is_learnt_alike(
    plain: dict[str, Tensor], agent: str, units: dict[str, tuple[float, float]]
) -> None:
    """The same random numbers give the same actions, but for rounding."""
    torch.testing.assert_close(learnt(agent, law(**units), 3), plain[agent], rtol=0, atol=0.02)


def test_an_agent_without_settings_learns_where_actions_run_from_100_to_1000() -> None:
    """A config names the agent and nothing about its units."""
    family = law(action=(550.0, 450.0))
    learner = rl2_learner(family.observation_space, family.action_space, RL2Config())
    earned: list[float] = []
    meta_train(
        learner,
        family,
        RolloutWorker(family),
        Budget(30, 24, 2),
        0,
        lambda row: earned.append(row["mean_return"]) or False,
    )
    steps = 8  # of a trial; no constant action loses less than 0.5 in each on average
    assert np.mean(earned[-3:]) > -0.5 * steps


def test_raw_units_do_depend_on_them(plain: dict[str, Tensor]) -> None:
    """Or the test above could not fail."""
    family = law(action=(550.0, 450.0))
    config = RL2Config.model_validate({"core": {"hidden_size": 16}, "action_units": "raw"})
    learner = rl2_learner(family.observation_space, family.action_space, config)
    trial = RolloutWorker(family).run(learner.agent, sample_tasks(family, 16, 1, "test"), 2, 2)
    assert (trial.phases[0].action < 100).all()  # every action is clipped


def test_the_policy_is_at_the_middle_and_as_wide_as_it_says() -> None:
    space = gym.spaces.Box(np.array([100, -1, 0], np.float32), np.array([1000, 1, np.inf], np.float32))
    units = action_units(space, UnitsConfig())
    assert units is not None
    head = action_head(space, 4, 0.5, units)
    policy = head(torch.zeros(2, 4))
    assert isinstance(policy, Gaussian)
    assert policy.mean.tolist() == [[550, 0, 0]] * 2
    torch.testing.assert_close(policy.log_deviation.exp()[0], torch.tensor([225.0, 0.5, 0.5]))
    assert ActionUnits(units)(torch.tensor([1000.0, -1.0, 3.0])).tolist() == [1, -1, 3]
    assert not head.state_dict().keys() & {"centre", "scale"}  # the space says them
    stacked = head.stacked(
        {name: value.expand(2, *value.shape) for name, value in head.named_parameters()}, torch.zeros(2, 1, 4)
    )
    torch.testing.assert_close(stacked[:, 0], head.parameters_of(torch.zeros(2, 4)))


@pytest.mark.parametrize("space", [gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,))])
def test_what_has_a_unit_of_one_stays(space: gym.Space[Any]) -> None:
    assert action_units(space, UnitsConfig()) is None
    x = torch.rand(5, 2)
    assert ActionUnits(None)(x) is x and ObservationUnits(space, True)(x) is x
    assert action_units(gym.spaces.Box(0, 9, (2,)), RAW) is None


def test_observations_have_the_unit_of_their_bounds_or_of_what_was_seen() -> None:
    low, high = np.array([0, -1, -np.inf], np.float32), np.array([100, 1, np.inf], np.float32)
    units = ObservationUnits(gym.spaces.Box(low, high), True)
    assert units(torch.tensor([[75.0, 0.5, 3.0]])).tolist() == [[0.5, 0.5, 3.0]]
    seen = torch.randn(3, 40, 3) * torch.tensor([1.0, 1.0, 50.0]) + 1000
    mask = torch.rand(3, 40) < 0.7
    for part, some in zip(seen, mask, strict=True):  # in three batches
        units.measure([part], [some])
    ours = seen[mask][:, 2]
    got = units(torch.tensor([[50.0, 0.0, float(ours.mean() + ours.std(correction=0))]]))
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.0, 1.0]]), rtol=1e-4, atol=1e-4)
    assert units(torch.tensor([[50.0, 0.0, 1e9]]))[0, 2] == 10  # as far as it goes
    again = ObservationUnits(gym.spaces.Box(low, high), True)
    again.load_state_dict(units.state_dict())
    assert torch.equal(again(seen), units(seen))


def test_rewards_are_measured_once() -> None:
    units = RewardUnits()
    reward, mask = torch.tensor([[5.0, 7.0], [99.0, 9.0]]), torch.tensor([[True, True], [False, True]])
    assert units(reward).tolist() == [[0, 0], [0, 0]]  # nothing is known yet
    units.measure([torch.zeros(2, 2)], [mask])
    assert units.scale == 0  # nothing was paid
    units.measure([reward], [mask])
    units.measure([reward * 9], [mask])
    assert units.centre == 7 and units.scale == pytest.approx((8 / 3) ** 0.5)
    constant = RewardUnits()
    constant.measure([torch.full((4,), -0.1)], [torch.ones(4, dtype=torch.bool)])
    assert constant.scale == pytest.approx(0.1)


def test_a_resumed_learner_has_the_measured_units() -> None:
    for make, config in (
        (rl2_learner, RL2Config.model_validate({"core": {"hidden_size": 8}})),
        (
            MAMLTRPOLearner,
            MAMLTRPOConfig(hidden_sizes=[8], episodes_per_phase=1, baseline=False, standardise=False),
        ),
    ):
        family = law(reward=(50.0, 3.0))
        learner: Any = make(family.observation_space, family.action_space, config)
        meta_train(learner, family, RolloutWorker(family), Budget(1, 8, 2), 0, lambda row: False)
        saved = learner.state_dict()
        again: Any = make(family.observation_space, family.action_space, config, seed=1)
        again.load_state_dict(saved)
        assert saved.keys() == again.state_dict().keys()
        assert all(torch.equal(again.state_dict()[name], value) for name, value in saved.items())
        assert any(value.numel() == 1 and 40 < float(value) < 55 for value in saved.values())  # the zero


def test_a_policy_that_is_clipped_most_of_the_time_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    family = law(action=(550.0, 450.0))
    config = RL2Config.model_validate({"core": {"hidden_size": 8}, "action_units": "raw"})
    learner = rl2_learner(family.observation_space, family.action_space, config)
    with caplog.at_level(logging.WARNING, "rl2meta"):
        meta_train(learner, family, RolloutWorker(family), Budget(2, 4, 2), 0, lambda row: False)
    (record,) = caplog.records
    assert "entry 0 of the actions lay outside of its bounds [100, 1000] in 100 %" in record.getMessage()
