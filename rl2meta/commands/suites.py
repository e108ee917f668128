"""What a benchmark measures: contestants that train for a while and say how fast."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TaskDistribution
from rl2meta.training import Budget, Learner, meta_train

Contestant = Callable[[float], float]
"""Trains for about so many seconds and returns environment steps per second, updates included."""


class Suite(NamedTuple):
    """Contestants that are measured in turns.

    Attributes:
        title: what they do, in a line.
        setting: the same as data.
        contestants: by name, ours first.
    """

    title: str
    setting: Mapping[str, Any]
    contestants: Mapping[str, Contestant]


def training(
    learner: Learner, distribution: TaskDistribution, device: torch.device, trials: int, episodes: int
) -> Contestant:
    """Return a learner of ours as a contestant: whole updates, rollouts included."""
    worker = RolloutWorker(distribution, device)
    budget = Budget(updates=10**9, trials_per_update=trials, episodes_per_trial=episodes)
    done = 0

    def train(seconds: float) -> float:
        nonlocal done
        began, steps = time.perf_counter(), 0

        def record(row: dict[str, Any]) -> bool:
            nonlocal done, steps
            done, steps = row["update"], row["env_steps"]
            return time.perf_counter() - began >= seconds

        meta_train(learner, distribution, worker, budget, 0, record, start=done)
        return steps / (time.perf_counter() - began)

    return train
