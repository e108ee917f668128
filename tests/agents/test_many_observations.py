"""Discrete observations of many values: agents look them up in a table instead of one-hot vectors."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.errors import UserError
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

MANY = 1100
USED = (3, 1098)


class Signs(gym.Env[Any, Any]):
    """One sign asks for action 0 and the other for action 1; the task says which is which."""

    observation_space = gym.spaces.Discrete(MANY, start=-7)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, flipped: int) -> None:
        self.flipped = flipped

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._sign(), {}

    def step(self, action: Any) -> Any:
        right = action == self.which ^ self.flipped
        return self._sign(), float(right), False, False, {}

    def _sign(self) -> int:
        self.which = int(self.np_random.integers(2))
        return USED[self.which] - 7


class SignFamily:
    horizon = 6

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        return {"flipped": int(rng.random() < 0.2)}

    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Signs(task["flipped"])


@pytest.mark.parametrize("previous", [False, True])
def test_rl2_learns_what_two_of_many_numbers_mean(previous: bool) -> None:
    config = RL2Config.model_validate(
        {"core": {"hidden_size": 16, "previous_observation": previous}, "minibatches": 1}
    )
    law = PluggedIn(SignFamily(), WorkerSettings(processes=0))
    _learns(law, rl2_learner(law.observation_space, law.action_space, config), 2, 40, 32)


def test_maml_learns_what_two_of_many_numbers_mean() -> None:
    law = PluggedIn(SignFamily(), WorkerSettings(processes=0))
    config = MAMLTRPOConfig(hidden_sizes=[8], episodes_per_phase=4, curvature_fraction=1.0)
    _learns(law, MAMLTRPOLearner(law.observation_space, law.action_space, config), 8, 12, 12)


def _learns(law: PluggedIn, learner: Any, episodes: int, updates: int, tasks: int) -> None:
    (table,) = (
        v for name, v in learner.state_dict().items() if v.shape == (MANY + 1, 64) and "exp" not in name
    )
    before, worker, rows = table.clone(), RolloutWorker(law), list[Any]()
    meta_train(
        learner, law, worker, Budget(updates, tasks, episodes), 0, lambda row: rows.append(row) or False
    )
    trial = worker.run(learner.agent, sample_tasks(law, 20, 0, "test"), episodes, 1)
    last = trial.phases[-1]
    assert float(last.reward[last.mask].mean()) > 0.7  # chance: 0.5; without telling the signs apart too
    moved = (table - before).abs().sum(dim=1).nonzero().flatten().tolist()
    assert moved == [number + 1 for number in USED]


@pytest.mark.parametrize("core", ["gru", "slot", "transformer", "snail", None])
def test_too_many_observations_are_the_users_mistake(core: str | None) -> None:
    """No agent makes a table for them, and the command line shows no traceback."""
    given = gym.spaces.Discrete(10**7), gym.spaces.Discrete(2)
    with pytest.raises(UserError, match="expected at most 1,000,000 discrete observations"):
        if core is None:
            MAMLTRPOLearner(*given, MAMLTRPOConfig())
        else:
            rl2_learner(*given, RL2Config.model_validate({"core": {"name": core}}))
