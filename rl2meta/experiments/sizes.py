"""Refuse sizes that do not fit into memory before anything of that size is made.

Every estimate is a lower bound: a run that fits is never refused. A run that passes may still not fit.
"""

from math import prod

import gymnasium as gym
import torch

from rl2meta.errors import UserError
from rl2meta.evaluation import SINGLES_TOGETHER, TENSORS_TOGETHER
from rl2meta.experiments.catalogue import DISTRIBUTIONS
from rl2meta.experiments.components import judged_episodes
from rl2meta.experiments.config import RunConfig
from rl2meta.memory import available
from rl2meta.spaces import encoding
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.trial import Lived, Trial, over_fields
from rl2meta.workers.plugged_in import PluggedIn

_STEP_BYTES = 15  # two rewards and an action of 4 bytes or more each, and three flags
_RESULT_BYTES = 8  # the reward of an episode and its number of steps
_SINGLE_BYTES = 1_000  # a single environment with its task, in Python
_A_FEW = 2
_MOST_WATCHED = 100_000  # steps of a trial


def room_on(device: torch.device) -> int | None:
    """Return how much memory a device has for this process, at most, in bytes; None if it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return available()


def refuse_training(config: RunConfig, room: int | None) -> None:
    """Refuse batches whose shortest possible trials do not fit: each episode has one step or more.

    Args:
        config: the experiment.
        room: of its device, see ``room_on``.

    Raises:
        UserError: with the keys of the sizes.
    """
    settings = config.settings.training
    need = settings.trials_per_update * (
        settings.episodes_per_trial * _step_bytes(config) + _task_bytes(config)
    )
    refuse(
        need,
        room,
        f"training.trials_per_update={settings.trials_per_update}, "
        f"training.episodes_per_trial={settings.episodes_per_trial}",
    )


def refuse_evaluation(config: RunConfig, num_tasks: int, room: int | None) -> None:
    """Refuse an evaluation whose shortest possible trials, results or tasks do not fit.

    Args:
        config: the experiment.
        num_tasks: the number of held-out tasks.
        room: of its device, see ``room_on``.

    Raises:
        UserError: with the keys of the sizes.
    """
    episodes = judged_episodes(config)
    together = min(num_tasks, SINGLES_TOGETHER if isinstance(config.law, PluggedIn) else TENSORS_TOGETHER)
    said = f"an evaluation with {num_tasks:,} tasks and {episodes:,} episodes in a trial"
    refuse(together * (episodes * _step_bytes(config) + _task_bytes(config)), room, said)
    refuse(num_tasks * (episodes * _RESULT_BYTES + _task_bytes(config)), available(), said)


def refuse_watching(config: RunConfig) -> None:
    """Refuse a trial of more steps than a page can hold: each step keeps what the agent told.

    Raises:
        UserError: with the option of the size.
    """
    episodes, horizon = judged_episodes(config), config.distribution.horizon
    if episodes * horizon > _MOST_WATCHED:
        raise UserError(
            f"--episodes: expected a trial of at most {_MOST_WATCHED:,} steps to watch, got {episodes:,} "
            f"episodes of up to {horizon:,} steps; give fewer"
        )


def refuse_tasks(config: RunConfig, num_tasks: int, seed: int) -> None:
    """Refuse more held-out tasks than fit, judged by a few of them.

    Raises:
        UserError: with the number of tasks.
    """
    few = min(_A_FEW, num_tasks)
    tasks = sample_tasks(config.distribution, few, seed, "test")
    if isinstance(tasks, TensorTasks):
        need = num_tasks * sum(tensor.nbytes for tensor in tasks.parameters.values()) // few
        refuse(need, available(), f"{num_tasks:,} held-out tasks")


def refuse(need: int, room: int | None, what: str) -> None:
    """Refuse what takes more memory than there is.

    Raises:
        UserError: with ``what``, which names the sizes to lower.
    """
    if room is not None and need > room:
        raise UserError(
            f"{what}: expected a size that fits into memory; lower the sizes: it takes {_gigabytes(need)} or "
            f"more, and {_gigabytes(room)} are free"
        )


def bytes_of(trial: Trial) -> int:
    """Return how many bytes the tensors of a trial take, with its tasks."""
    sizes: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    for phase in trial.phases:
        for name in Lived._fields:
            over_fields(note, getattr(phase, name))
    if isinstance(trial.tasks, TensorTasks):
        sizes += [tensor.nbytes for tensor in trial.tasks.parameters.values()]
    return sum(sizes)


def _step_bytes(config: RunConfig) -> int:
    law = config.distribution
    size = encoding(law.action_space).size
    return _STEP_BYTES + prod(law.observation_space.shape or ()) + 4 * size * (2 if _regrets(config) else 1)


def _regrets(config: RunConfig) -> bool:
    """Return whether each step has the regrets of all actions: in built-in families with discrete actions."""
    built_in = config.distribution_name in DISTRIBUTIONS and not isinstance(config.law, PluggedIn)
    return built_in and isinstance(config.law.action_space, gym.spaces.Discrete)


def _task_bytes(config: RunConfig) -> int:
    return _SINGLE_BYTES if isinstance(config.law, PluggedIn) else 0


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
