"""The one outer loop: sample tasks, run trials, learn, tell a callback."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import torch
from pydantic import BaseModel
from torch import Tensor

from rl2meta.randomness import derive, generator
from rl2meta.rollout import Worker
from rl2meta.tasks import TaskDistribution, sample_tasks
from rl2meta.trial import Agent, Trial


def linear(start: float, end: float | None, progress: float) -> float:
    """Return the value after a fraction ``progress`` of training; ``start`` all along if ``end`` is None."""
    return start if end is None else start + (end - start) * progress


class Learner(Protocol):
    """What changes an agent between trials."""

    @property
    def agent(self) -> Agent[Any]:
        """The agent that is being changed."""
        ...

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> Mapping[str, float]:
        """Learn from one trial on every task of a batch; return the metrics of the update.

        Args:
            trial: what the current agent just lived through.
            progress: the fraction of training that lies behind, in [0, 1); drives schedules.
            generator: a CPU generator for all that the update draws.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs, as named tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take on a state that ``state_dict`` returned."""
        ...


@dataclass(frozen=True)
class AgentKind:
    """An agent that can be trained: what stands for it under ``agent.name`` in a config.

    Attributes:
        line: what it is, in a line.
        config: the class of its config, a pydantic model.
        learner: (observation space, action space, config, device, seed) -> its learner; the initial weights
            depend on the seed alone.
        at_test: the keys of its config that may change after training.
    """

    line: str
    config: type[BaseModel]
    learner: Callable[[gym.Space[Any], gym.Space[Any], Any, torch.device, int], Learner]
    at_test: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """How much a run trains.

    Attributes:
        updates: updates of the learner in the whole run.
        trials_per_update: tasks drawn for each update, one trial each.
        episodes_per_trial: episodes in a trial.
    """

    updates: int
    trials_per_update: int
    episodes_per_trial: int

    def __post_init__(self) -> None:
        if min(self.updates, self.trials_per_update, self.episodes_per_trial) < 1:
            raise ValueError(f"expected numbers >= 1, got {self}")


class TrainingDiverged(Exception):
    """A metric of an update is not finite."""


def meta_train(
    learner: Learner,
    distribution: TaskDistribution,
    worker: Worker,
    budget: Budget,
    seed: int,
    callback: Callable[[dict[str, Any]], bool],
    start: int = 0,
    env_steps: int = 0,
) -> None:
    """Train ``learner`` on tasks from the training branch of ``seed``.

    Every draw of update u comes from streams named by (seed, u), so a run that starts at ``start`` with the
    learner's state of that update goes on exactly as the undisturbed run would.

    Args:
        learner: what learns.
        distribution: the law of the training tasks.
        worker: runs the trials.
        budget: how long, and how wide.
        seed: of the whole run.
        callback: called after each update with its metrics: ``update`` (counted from 1), ``env_steps``,
            ``seconds``, ``env_steps_per_second``, ``mean_return`` and the learner's own; returns true to
            stop.
        start: updates already done.
        env_steps: environment interactions already made.

    Raises:
        TrainingDiverged: if a metric is not finite; the update is not recorded.
    """
    for update in range(start, budget.updates):
        began = time.perf_counter()
        tasks = sample_tasks(distribution, budget.trials_per_update, derive(seed, "train", update), "train")
        trial = worker.run(
            learner.agent, tasks, budget.episodes_per_trial, derive(seed, "train", update, "rollout")
        )
        metrics = learner.update(trial, update / budget.updates, generator(seed, "train", update, "learner"))
        steps, mean_return = trial.num_steps(), _mean_return(trial)
        seconds = time.perf_counter() - began
        env_steps += steps
        row = {"update": update + 1, "env_steps": env_steps, "mean_return": mean_return, **metrics}
        _refuse_non_finite(row)
        if callback({**row, "seconds": seconds, "env_steps_per_second": steps / seconds}):
            return


def _mean_return(trial: Trial) -> float:
    """The sampled reward of a trial, mean over tasks (and over lanes, which share a task)."""
    rewards = trial.per_task("reward")
    assert rewards is not None  # every trajectory has rewards
    return float(rewards.sum(dim=1).mean())


def _refuse_non_finite(row: Mapping[str, float]) -> None:
    bad = {name: value for name, value in row.items() if not math.isfinite(value)}
    if bad:
        raise TrainingDiverged(
            f"update {row['update']}: expected finite metrics, got {bad}; "
            "lower the learning rate or look for non-finite rewards in the environment"
        )
