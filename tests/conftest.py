"""Families of tasks, and an agent, that exist only here."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side, one process a core; read when torch loads
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as of a job in the background; programs that tests start inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.append(str(Path(__file__).parent / "forked"))  # where tests import ``Forked``

import gymnasium as gym
import numpy as np
import pytest
import torch
from pydantic import BaseModel

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.tasks import Split, TensorTasks
from rl2meta.training import AgentKind
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory, Trial


@pytest.fixture(autouse=True, scope="session")
def no_state_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the secret of the tests apart from that of the user who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True, scope="session")
def unrendered() -> Iterator[Callable[..., Path]]:
    """Figures are made and not rendered, which takes longer than a small evaluation; yield what renders."""
    from rl2meta import drawing

    def touch(figure: Any, path: Path, software: str | None = None) -> Path:
        path.touch()
        return path

    with pytest.MonkeyPatch.context() as patch:
        real = drawing.save
        patch.setattr(drawing, "save", touch)
        yield real


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch, unrendered: Callable[..., Path]) -> None:
    """Figures are rendered, for a test that looks at the pictures."""
    from rl2meta import drawing

    monkeypatch.setattr(drawing, "save", unrendered)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, unrendered: Callable[..., Path]) -> list[Any]:
    """The figures that are written, kept for inspection, and rendered."""
    from rl2meta import drawing

    figures: list[Any] = []

    def keep(figure: Any, path: Any, software: str | None = None) -> Any:
        figures.append(figure)
        return unrendered(figure, path, software)

    monkeypatch.setattr(drawing, "save", keep)
    return figures


class Corridor:
    """Walk ``length`` steps to the end: episodes of unequal length, a task that must be remembered.

    Action 1 goes forward, 0 stays. The step that arrives pays 1 (plus noise) and terminates. The state is
    (position, steps taken); the observation is the position.
    """

    def __init__(self, horizon: int = 5, noise: float = 0.1) -> None:
        self.horizon = horizon
        self.noise = noise
        self.observation_space = gym.spaces.Box(0, horizon, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        return TensorTasks({"length": torch.randint(1, self.horizon + 1, (num_tasks,), generator=generator)})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        return TensorVectorEnv(self, _Walk(self.horizon, self.noise), num_envs, device)

    def optimal_return(self, tasks: TensorTasks) -> torch.Tensor:
        return torch.ones(len(tasks))

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        return float(num_episodes)


class _Walk:
    def __init__(self, horizon: int, noise: float) -> None:
        self.horizon, self.noise = horizon, noise

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(len(tasks), 2, dtype=torch.int64)

    def observe(self, state: torch.Tensor) -> torch.Tensor:
        return state[:, :1].float()

    def step(
        self, tasks: TensorTasks, state: torch.Tensor, action: torch.Tensor, generator: torch.Generator
    ) -> Transition:
        moved = state + torch.stack([action, torch.ones_like(action)], dim=1)
        to_go, left = tasks.parameters["length"] - moved[:, 0], self.horizon - moved[:, 1]
        arrived = to_go == 0
        expected = arrived.float()
        could = (to_go - (1 - action) <= left).float()  # had it gone forward
        can = torch.where(arrived, expected, (to_go <= left).float())
        return Transition(
            state=moved,
            reward=expected + self.noise * torch.randn(len(action), generator=generator),
            terminated=arrived,
            truth={
                "expected_reward": expected,
                "regret": could - can,
            },
        )


@pytest.fixture
def corridor() -> Callable[..., Corridor]:
    """Corridors of a given horizon."""
    return Corridor


@dataclass(frozen=True)
class NextArm:
    """Pulls arm k of a bandit in all lanes of its k-th phase; the carry is k for every row."""

    lanes: int

    @property
    def phase(self) -> Phase:
        return Phase(episodes=1, lanes_per_task=self.lanes)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> torch.Tensor:
        return torch.zeros(num_tasks * self.lanes, dtype=torch.int64)

    def act(self, carry: torch.Tensor, step: TimeStep) -> tuple[Choice, torch.Tensor]:
        return Choice(carry, carry), carry

    def adapt(self, carry: torch.Tensor, trajectory: Trajectory) -> torch.Tensor:
        return carry + 1


@pytest.fixture
def next_arm() -> Callable[[int], NextArm]:
    """Agents that adapt after so many pulls side by side."""
    return NextArm


class LanesConfig(BaseModel):
    """Settings of ``NextArm``."""

    lanes: int


@dataclass(frozen=True)
class NothingToLearn:
    """A learner whose agent stays as it is."""

    agent: NextArm

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> Mapping[str, float]:
        return {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None: ...


@pytest.fixture
def arms_in_turn(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name, in a config, of the kind of ``NextArm``; its ``lanes`` may change after training."""
    module = ModuleType("arms_in_turn")
    module.__dict__["ARMS_IN_TURN"] = AgentKind(
        "pulls one arm after another",
        LanesConfig,
        lambda seen, done, config, device, seed: NothingToLearn(NextArm(config.lanes)),
        at_test=("lanes",),
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return "arms_in_turn:ARMS_IN_TURN"


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies of MAML's kind note log π of what they do, for tests that ask whether they would again."""
    from rl2meta.agents.policy_gradient import PolicyGradient

    choose = PolicyGradient.choose

    def noting(objective: PolicyGradient, outputs: torch.Tensor, source: torch.Generator) -> Choice:
        choice = choose(objective, outputs, source)
        return choice._replace(notes={"log_prob": objective.distribution(outputs).log_prob(choice.action)})

    monkeypatch.setattr(PolicyGradient, "choose", noting)
