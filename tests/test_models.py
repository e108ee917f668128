"""Models of the world, and the references that are defined on them."""

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl2meta.agents.references.catalogue import references_on
from rl2meta.envs.bandits import BernoulliBandits, GaussianBandits
from rl2meta.envs.dependent_bandits import DependentBandits
from rl2meta.envs.mazes import DarkRooms, KeyToDoor
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.envs.two_step import TwoStep
from rl2meta.errors import UserError
from rl2meta.evaluation import evaluate
from rl2meta.experiments.catalogue import DISTRIBUTIONS
from rl2meta.experiments.components import COMPONENTS, FAMILIES, references_of, references_of_family
from rl2meta.experiments.config import load_config
from rl2meta.models import BernoulliArms, DependentArms, GaussianArms, HiddenGoals, TabularMDP, model_of
from rl2meta.revealed import Revealed
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TaskDistribution, sample_tasks
from rl2meta.workers.faults import EnvironmentFault
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

SEVEN = ["random", "greedy", "epsilon_greedy", "ucb1", "thompson", "ots", "gittins"]
CONFIG = """
agent: {name: rl2}
training: {updates: 1, trials_per_update: 4, episodes_per_trial: 6}
workers: {processes: 0}
"""


class Coins(gym.Env[Any, Any]):
    """Which of some coins comes up heads most often? A toss is an episode."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)

    def __init__(self, chances: Any) -> None:
        self.chances = np.asarray(chances)
        self.action_space = gym.spaces.Discrete(len(self.chances))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        chance = self.chances[action]
        known = {"expected_reward": chance, "regret": self.chances.max() - chance}
        return np.zeros(1, np.float32), float(self.np_random.random() < chance), True, False, known


class Purses:
    """A person's own family: all that is said of the law is one line."""

    horizon = 1
    model: Any = BernoulliArms(3, high=0.4)

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        return {"chances": rng.uniform(0, 0.4, 3)}

    def make_env(self, task: Any) -> Coins:
        return Coins(**task)


def plugged(model: Any) -> PluggedIn:
    family = Purses()
    family.model = model
    return PluggedIn(family, WorkerSettings(processes=0))


def load(distribution: str, *overrides: str) -> Any:
    return load_config(f"distribution: {{{distribution}}}{CONFIG}", "x.yaml", overrides, COMPONENTS)


# What a family says


@pytest.mark.parametrize(
    ("family", "model"),
    [
        (BernoulliBandits(4, 0.1, 0.9), BernoulliArms(4, 0.1, 0.9)),
        (GaussianBandits(3, 2.0), GaussianArms(3, 2.0)),
        (DependentBandits("uniform"), DependentArms()),
        (DependentBandits("hard"), DependentArms(0.6)),
        (TabularMDPs(4, 3, 5, noise=0.5), TabularMDP(4, 3, 5, noise=0.5)),
        (PointNavigation(), None),
        (Revealed(BernoulliBandits()), None),
        (PluggedIn(Purses(), WorkerSettings(processes=0)), BernoulliArms(3, high=0.4)),
        (plugged(None), None),
        (plugged("HalfCheetah"), None),  # a word of the family's own
    ],
    ids=str,
)
def test_families_say_what_they_are(family: TaskDistribution, model: Any) -> None:
    assert model_of(family) == model


def test_mazes_and_the_two_step_task_say_what_they_are() -> None:
    for family, num_goals in ((DarkRooms(), 1), (KeyToDoor(), 2)):
        maze = model_of(family)
        assert isinstance(maze, HiddenGoals) and maze.num_goals == num_goals
        assert torch.equal(maze.distances, family.layout_tables().distances)
    assert str(model_of(TwoStep(high=0.8))) == "TwoStepTask(high=0.8, low=0.1, switch_probability=0.0)"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (BernoulliArms(5), r"model BernoulliArms: expected action_space Discrete\(5\), got Discrete\(3\)"),
        (TabularMDP(4, 3, 2), r"observation_space Discrete\(4\), got Box.*; horizon 2, got 1; change"),
        (BernoulliArms, r"model: expected a model, got its class; write BernoulliArms\(\.\.\.\)"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(model: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_of(plugged(model))


def test_a_model_that_raises_is_the_familys_fault() -> None:
    class Broken(Purses):
        @property
        def model(self) -> Any:  # type: ignore[override]
            return BernoulliArms(3, high=1.5)

    with pytest.raises(
        EnvironmentFault, match=r"(?s)model: .*expected 0 <= low < high <= 1, got \(0.0, 1.5\)"
    ):
        model_of(PluggedIn(Broken(), WorkerSettings(processes=0)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BernoulliArms(0), "num_arms >= 1, got 0"),
        (lambda: GaussianArms(2, float("nan")), "a finite mean, got nan"),
        (lambda: DependentArms(0.5), r"better in \(1/2, 1\), or None, got 0.5"),
        (lambda: TabularMDP(2, 2, 0), r"horizon >= 1, got \(2, 2, 0\)"),
        (lambda: TabularMDP(2, 2, 1, noise=-1.0), "reward_deviation and noise >= 0"),
        (lambda: TabularMDP(2, 2, 1, concentration=0.0), "concentration > 0, got 0.0"),
        (lambda: HiddenGoals(*DarkRooms().layout_tables()[:3], num_goals=0), "num_goals from 1 to 81, got 0"),
    ],
)
def test_models_that_are_none_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_model_needs_no_torch() -> None:
    """Worker processes import what a family imports."""
    command = "import sys, rl2meta.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


# References


def test_references_hang_on_the_family_and_not_on_its_name() -> None:
    by_name, by_path = (
        references_of(load(f"name: {name}"), 6)
        for name in ("bernoulli_bandits", '"rl2meta.envs.bandits:BernoulliBandits"')
    )
    assert list(by_name) == list(by_path) == SEVEN
    assert all(by_name[name].description == by_path[name].description for name in SEVEN)


def test_a_bandit_of_ones_own_has_them_too() -> None:
    config = load(f'name: "{__name__}:Purses"')
    references = references_of(config, 12)
    assert list(references) == SEVEN
    held_out = sample_tasks(config.distribution, 400, 0, "test")
    earned = {
        name: evaluate(references[name].build(), RolloutWorker(config.distribution), held_out, 12, 0)
        for name in ("random", "thompson", "gittins")
    }
    lost = {name: result.regrets.sum(axis=1) for name, result in earned.items()}
    assert lost["gittins"].mean() < lost["thompson"].mean() < lost["random"].mean()
    # What an arm of the built-in family would have earned: the best there is, but for the luck of 400 tasks.
    optimum = np.mean([12 * task["chances"].max() for task in held_out.entries])
    best = BernoulliBandits(3, 0.0, 0.4).bayes_optimal_return(12)
    assert best is not None
    expected_loss = 12 * 0.3 - best  # the best of three of U[0, 0.4] pays 0.3
    assert abs(lost["gittins"].mean() - expected_loss) < 4 * lost["gittins"].std() / 20
    assert abs(optimum - 12 * 0.3) < 0.2


def test_revealed_tasks_have_none_and_a_family_without_a_model_has_one() -> None:
    assert references_of(load("name: bernoulli_bandits", "reveal_task=true"), 6) == {}
    assert list(references_of(load("name: point_navigation"), 6)) == ["random"]
    assert list(references_on(None, gym.spaces.Discrete(2), 3)) == ["random"]


def test_what_is_listed_is_what_the_built_in_families_have() -> None:
    listed = {name: references_of_family(FAMILIES[name]) for name in DISTRIBUTIONS}
    several = [name for name, references in listed.items() if references is not None and len(references) > 1]
    assert several == [
        "bernoulli_bandits",
        "gaussian_bandits",
        "dependent_bandits",
        "two_step",
        "tabular_mdps",
        "dark_rooms",
        "key_to_door",
        "moving_bandits",
        "few_shot",
    ]
    assert [name for name, references in listed.items() if references is None] == [
        "gymnasium",
        "set_task_envs",
        "benchmark_tasks",
    ]
    assert list(listed["cheetah_directions"] or {}) == ["random"]
    assert list(listed["bernoulli_bandits"] or {}) == SEVEN
