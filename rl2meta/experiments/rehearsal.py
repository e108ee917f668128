"""A short test of an experiment before a run writes anything."""

import json
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any, get_args

import torch

from rl2meta.errors import UserError
from rl2meta.experiments.components import judged_episodes, make_learner
from rl2meta.experiments.composition import train_learner
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.sizes import bytes_of, refuse, refuse_evaluation, refuse_training, room_on
from rl2meta.memory import limited
from rl2meta.randomness import derive, generator
from rl2meta.tasks import MappingTasks, Split
from rl2meta.training import Budget, Learner, TrainingDiverged
from rl2meta.trial import Agent, Phase, Trial
from rl2meta.workers.plugged_in import PluggedIn

_TASKS = 2


def draw(law: PluggedIn, num_tasks: int, seed: int, split: Split) -> MappingTasks:
    """Draw tasks of a family with single environments, and check that the draw depends only on the seed.

    Raises:
        UserError: if the family cannot draw tasks, or two draws from the same seed differ.
    """
    tasks, again = (law.sample(num_tasks, generator(seed, "tasks", split), split) for _ in range(2))
    for task, other in zip(tasks.to_dict()["tasks"], again.to_dict()["tasks"], strict=True):
        if json.dumps(task, sort_keys=True) != json.dumps(other, sort_keys=True):
            raise UserError(
                f"{law}: sample: expected the same task from generators with the same seed, got "
                f"{task!s:.100}, then {other!s:.100}; draw only from the generator that sample() gets"
            )
    return tasks


def rehearse(config: RunConfig, device: torch.device) -> None:
    """Take one update on two tasks with a learner that is then discarded.

    Errors that depend on several settings (phases that do not fill a trial, a reward that the family does not
    provide) appear here and not after an hour of training. Sizes that do not fit into memory do, too.

    Raises:
        UserError: if settings do not fit together, or into memory; the message names them.
        MemoryError, RuntimeError: (of torch) if an agent or two tasks do not fit into memory.
    """
    room = room_on(device)
    refuse_training(config, room)
    refuse_evaluation(config, _most_held_out(config), room)
    length, trials = config.settings.training.episodes_per_trial, config.settings.training.trials_per_update
    with limited() if device.type == "cpu" else nullcontext():
        learner = _Measured(make_learner(config, device))
        fill(learner.agent.phase, length, "training.episodes_per_trial")
        fill(learner.agent.phase, judged_episodes(config), "evaluation.episodes_per_trial")
        _update(config, learner, device, length)
    refuse(trials * learner.bytes // _TASKS, room, f"training.trials_per_update={trials}")


def _most_held_out(config: RunConfig) -> int:
    """Return the number of held-out tasks of the largest evaluation, during training or after it."""
    training, evaluation = config.settings.training, config.settings.evaluation
    return max(evaluation.tasks, 0 if training.evaluate_every is None else training.evaluation_tasks)


def _update(config: RunConfig, learner: Learner, device: torch.device, length: int) -> None:
    seed = derive(config.settings.seed, "rehearsal")
    if isinstance(config.law, PluggedIn):
        for split in get_args(Split):  # the test tasks too, for the evaluation
            config.law.optimal_return(draw(config.law, _TASKS, seed, split))
    budget = Budget(updates=1, trials_per_update=_TASKS, episodes_per_trial=length)
    with suppress(TrainingDiverged):  # two tasks may diverge where a whole batch does not
        train_learner(config, learner, device, lambda row: True, budget=budget, seed=seed)


class _Measured:
    """A learner that notes how many bytes its last trial takes."""

    def __init__(self, learner: Learner) -> None:
        self._learner, self.bytes = learner, 0
        self.state_dict, self.load_state_dict = learner.state_dict, learner.load_state_dict

    @property
    def agent(self) -> Agent[Any]:
        return self._learner.agent

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> Mapping[str, float]:
        self.bytes = bytes_of(trial)
        return self._learner.update(trial, progress, generator)


def fill(phase: Phase, num_episodes: int, key: str) -> None:
    """Refuse a trial that cannot be divided into an agent's phases.

    Raises:
        UserError: with the key, and lengths of trials that can be divided.
    """
    try:
        phase.plan(num_episodes)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
