"""From a run folder back to a learner."""

import torch

from rl2meta import checkpoints
from rl2meta.checkpoints import Checkpoint
from rl2meta.commands.components import COMPONENTS, make_learner
from rl2meta.config import RunConfig, load_config
from rl2meta.errors import UserError
from rl2meta.run_folder import RunFolder
from rl2meta.training import Learner


def load_run_config(folder: RunFolder) -> RunConfig:
    """Return the experiment that a run folder holds."""
    return load_config(folder.config_text(), str(folder.config_path), (), COMPONENTS)


def restore(folder: RunFolder, config: RunConfig, device: torch.device) -> tuple[Learner, Checkpoint]:
    """Return the learner of a run as its newest whole checkpoint has it, and that checkpoint.

    Raises:
        UserError: if there is no whole checkpoint, or it does not fit the config.
    """
    saved = checkpoints.newest(folder.checkpoints_path, _warn, device)
    if saved is None:
        raise UserError(f"{folder.path}: expected a checkpoint, got none; train in another --run-dir")
    learner = make_learner(config, device)
    try:
        learner.load_state_dict(saved.tensors)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder.config_path}: expected the config that the checkpoint of update {saved.update} was "
            f"trained with, got one that it does not fit; undo changes to it ({error})"
        ) from None
    return learner, saved


def _warn(message: str) -> None:
    print(f"warning: {message}", flush=True)
