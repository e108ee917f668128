"""Whether an experiment can be run at all, found out before anything is written."""

import json
from contextlib import suppress
from typing import get_args

import torch

from rl2meta.errors import UserError
from rl2meta.experiments.components import judged_episodes, make_learner
from rl2meta.experiments.composition import train_learner
from rl2meta.experiments.config import RunConfig
from rl2meta.randomness import derive, generator
from rl2meta.tasks import MappingTasks, Split
from rl2meta.training import Budget, TrainingDiverged
from rl2meta.trial import Phase
from rl2meta.workers.plugged_in import PluggedIn

_TASKS = 2


def draw(law: PluggedIn, num_tasks: int, seed: int, split: Split) -> MappingTasks:
    """Return tasks of a family that has them to be drawn, and draws the same from the same seed.

    Raises:
        UserError: otherwise.
    """
    tasks, again = (law.sample(num_tasks, generator(seed, "tasks", split), split) for _ in range(2))
    for task, other in zip(tasks.to_dict()["tasks"], again.to_dict()["tasks"], strict=True):
        if json.dumps(task, sort_keys=True) != json.dumps(other, sort_keys=True):
            raise UserError(
                f"{law}: sample: expected one task from generators of one seed, got {task!s:.100}, then "
                f"{other!s:.100}; draw from the generator that sample() is given, and from nothing else"
            )
    return tasks


def rehearse(config: RunConfig, device: torch.device) -> None:
    """Take one update on two tasks with a learner that is thrown away.

    What settings only show together (phases that do not fill a trial, a reward that the family does not emit)
    shows here and not after an hour.

    Raises:
        UserError: naming what does not fit.
    """
    learner = make_learner(config, device)
    length = config.settings.training.episodes_per_trial
    fill(learner.agent.phase, length, "training.episodes_per_trial")
    fill(learner.agent.phase, judged_episodes(config), "evaluation.episodes_per_trial")
    seed = derive(config.settings.seed, "rehearsal")
    if isinstance(config.law, PluggedIn):
        for split in get_args(Split):  # those that it will be judged on too
            config.law.optimal_return(draw(config.law, _TASKS, seed, split))
    budget = Budget(updates=1, trials_per_update=_TASKS, episodes_per_trial=length)
    with suppress(TrainingDiverged):  # on two tasks: that says nothing of whole batches
        train_learner(config, learner, device, lambda row: True, budget=budget, seed=seed)


def fill(phase: Phase, num_episodes: int, key: str) -> None:
    """Refuse a trial that does not split into an agent's phases.

    Raises:
        UserError: naming the key, and lengths that do.
    """
    try:
        phase.plan(num_episodes)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
