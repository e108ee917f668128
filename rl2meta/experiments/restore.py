"""From a run folder back to a learner."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel

from rl2meta.devices import resolve_device, set_precision
from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints
from rl2meta.experiments.checkpoints import Checkpoint
from rl2meta.experiments.components import COMPONENTS, make_learner
from rl2meta.experiments.config import RunConfig, completed, differing, load_config
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.tasks import TaskDistribution
from rl2meta.training import Learner
from rl2meta.trial import Agent


def load_run_config(folder: RunFolder) -> RunConfig:
    """Return the experiment that a run folder holds."""
    return load_config(folder.config_text(), str(folder.config_path), (), COMPONENTS)


def restore(
    folder: RunFolder,
    config: RunConfig,
    device: torch.device,
    fresh_if_never_saved: bool = False,
    agent: BaseModel | None = None,
) -> tuple[Learner, Checkpoint]:
    """Return the learner of a run as its newest whole checkpoint has it, and that checkpoint.

    Args:
        folder: the run.
        config: what it holds.
        device: where the learner shall live.
        fresh_if_never_saved: begin at update 0, and say so, if the run ended before it saved anything.
        agent: the settings that the agent shall have, where they may change after training; None for its own.

    Raises:
        UserError: if there is no whole checkpoint, or it does not fit the config.
    """
    saved = checkpoints.newest(folder.checkpoints_path, _warn, device)
    learner = make_learner(config if agent is None else replace(config, agent=agent), device)
    if saved is None:
        if not fresh_if_never_saved or folder.metrics_path.exists():
            raise UserError(f"{folder.path}: expected a checkpoint, got none; train in another --run-dir")
        _warn("the run ended before it saved anything; it begins again at update 0")
        return learner, Checkpoint(0, {}, {"env_steps": 0})
    _refuse_edits(folder, config, saved)
    try:
        learner.load_state_dict(saved.tensors)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder.config_path}: expected the config that the checkpoint of update {saved.update} was "
            f"trained with, got one that it does not fit; undo changes to it ({error})"
        ) from None
    return learner, saved


def _refuse_edits(folder: RunFolder, config: RunConfig, saved: Checkpoint) -> None:
    """What a checkpoint was trained as must still stand in config.yaml."""
    if not {"env_steps", "config"} <= saved.state.keys():
        raise UserError(
            f"{folder.checkpoints_path}: expected checkpoints of `rl2meta train`, got one that holds "
            f"{sorted(saved.state)}; restore the run's own"
        )
    now, then = config.identity(), completed(saved.state["config"], COMPONENTS)
    changed = [f"{key} is {now.get(key)!r}, was {then.get(key)!r}" for key in differing(now, then)]
    if changed:
        raise UserError(
            f"{folder.config_path}: expected the settings that the run was started with, got others: "
            f"{'; '.join(changed)}. Undo the change, or train the changed config in another --run-dir"
        )


class Run(NamedTuple):
    """A trained run, for use from Python.

    Attributes:
        distribution: the law of its tasks.
        agent: what was trained.
        episodes_per_trial: as in training.
    """

    distribution: TaskDistribution
    agent: Agent[Any]
    episodes_per_trial: int


def load_run(path: str | Path, device: str = "cpu") -> Run:
    """Return the trained agent of a run folder and what it was trained on.

    Raises:
        UserError: if there is no such run, or no whole checkpoint in it.
    """
    folder = RunFolder.open(Path(path))
    config = load_run_config(folder)
    set_precision(config.settings.precision)
    learner, _ = restore(folder, config, resolve_device(device))
    return Run(config.distribution, learner.agent, config.settings.training.episodes_per_trial)


def _warn(message: str) -> None:
    print(f"warning: {message}", flush=True)
