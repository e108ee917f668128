"""The single place that combines task distribution, worker and outer loop to a training."""

from collections.abc import Callable
from typing import Any

import torch

from rl2meta.experiments.components import make_training_worker
from rl2meta.experiments.config import RunConfig
from rl2meta.ranks import ONE, Ranks
from rl2meta.shards import ALONE, Shards
from rl2meta.training import Budget, Learner, meta_train


def train_learner(
    config: RunConfig,
    learner: Learner,
    device: torch.device,
    callback: Callable[[dict[str, Any]], bool],
    *,
    start: int = 0,
    env_steps: int = 0,
    budget: Budget | None = None,
    seed: int | None = None,
    ranks: Ranks = ONE,
) -> None:
    """Train a learner on the tasks of an experiment.

    Args:
        config: the experiment.
        learner: on ``device``.
        device: of the environments.
        callback: called after each update with its metrics; returns true to stop.
        start: number of updates already done.
        env_steps: number of environment steps already made.
        budget: number of updates, trials and episodes, in one shard; None: as in the config.
        seed: of all random draws; None: as in the config.
        ranks: the processes that train together.

    Raises:
        UserError: if the worker that the config asks for is not available.
        TrainingDiverged: if a metric is not finite.
    """
    settings = config.settings
    shards = ALONE if budget is not None else Shards(settings.training.shards, ranks)
    worker = make_training_worker(config, device, len(shards.own))
    try:
        meta_train(
            learner,
            config.distribution,
            worker,
            budget or settings.training.budget(),
            settings.seed if seed is None else seed,
            callback,
            start=start,
            env_steps=env_steps,
            shards=shards,
        )
    finally:
        worker.close()
