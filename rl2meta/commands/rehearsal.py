"""Whether an experiment can be run at all, found out before anything is written."""

import torch

from rl2meta.commands.components import judged_episodes, make_learner, make_worker
from rl2meta.config import RunConfig
from rl2meta.errors import UserError
from rl2meta.randomness import derive, generator
from rl2meta.tasks import sample_tasks
from rl2meta.trial import Phase

_TASKS = 2


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
    tasks = sample_tasks(config.distribution, _TASKS, seed, "train")
    worker = make_worker(config, device)
    try:
        trial = worker.run(learner.agent, tasks, length, seed)
    finally:
        worker.close()
    learner.update(trial, 0.0, generator(seed, "learner"))


def fill(phase: Phase, num_episodes: int, key: str) -> None:
    """Refuse a trial that does not split into an agent's phases.

    Raises:
        UserError: naming the key, and lengths that do.
    """
    try:
        phase.plan(num_episodes)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
