"""Load the learner of a run from its folder."""

import logging
import reprlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from rl2meta.devices import resolve_device, set_precision
from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints
from rl2meta.experiments.checkpoints import Checkpoint
from rl2meta.experiments.components import COMPONENTS, make_learner
from rl2meta.experiments.config import RunConfig, completed, differing, load_config, with_former
from rl2meta.experiments.recorder import checkpoint_of, save_first
from rl2meta.experiments.run import Origin, Run
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.experiments.trust import modules_named, refuse_strangers
from rl2meta.experiments.yaml_text import parse
from rl2meta.experiments.zoo import damaged
from rl2meta.training import Learner

_log = logging.getLogger("rl2meta")
_MOST = 100  # changed settings in a message
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def load_run_config(
    folder: RunFolder, overrides: Sequence[str] = (), trust: Collection[str] = ()
) -> RunConfig:
    """Return the experiment of a run folder.

    Args:
        folder: of the run.
        overrides: ``key.subkey=value``; the user trusts the modules that they name.
        trust: other modules that the user trusts.

    Raises:
        UserError: for a config with faults, or one that names modules that are not trusted.
    """
    text = folder.config_text()
    refuse_strangers(folder.config_path, text, {*trust, *modules_named(overrides)})
    return load_config(with_former(text, COMPONENTS), str(folder.config_path), overrides, COMPONENTS)


def restore(
    folder: RunFolder, config: RunConfig, device: torch.device, fresh_if_never_saved: bool = False
) -> tuple[Learner, Checkpoint]:
    """Return the learner of a run in the state of its newest complete checkpoint, and that checkpoint.

    Args:
        folder: of the run.
        config: the experiment of the run.
        device: of the learner.
        fresh_if_never_saved: begin at update 0, with a warning, if the run ended before its first checkpoint.

    Raises:
        UserError: if there is no complete checkpoint, or it does not fit the config.
    """
    saved = checkpoints.newest(folder.checkpoints_path, _log.warning, device)
    learner = make_learner(config, device)
    if saved is None:
        if not (fresh_if_never_saved and _never_saved(folder, config)):
            raise UserError(f"{folder.path}: expected a checkpoint, got none; train in another --run-dir")
        _log.warning("the run ended before it saved anything; it begins again at update 0")
        return learner, save_first(folder, checkpoint_of(config, learner, 0, 0))
    _refuse_edits(folder, config, saved)
    _refuse_nan(folder, saved)
    try:
        learner.load_state_dict(saved.tensors)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder.config_path}: expected the config that the checkpoint of update {saved.update} was "
            f"trained with, got one that it does not fit; undo changes to it ({error})"
        ) from None
    return learner, saved


def _never_saved(folder: RunFolder, config: RunConfig) -> bool:
    """Return whether a run of an earlier version ended before its first checkpoint was due.

    Its initial weights depend only on the seed, unless they came from another run.
    """
    done = max((row["update"] for row in folder.read_metrics()), default=0)
    due = min(config.settings.training.checkpoint_every, config.settings.training.updates)
    return done < due and "started_from" not in parse(folder.config_text(), str(folder.config_path))


def origin_of(folder: RunFolder) -> Origin | None:
    """Return the run whose weights the run in a folder began with; None if config.yaml tells of none."""
    said = parse(folder.config_text(), str(folder.config_path)).get("started_from")
    try:
        return None if said is None else Origin(said["path"], said["update"])
    except (LookupError, TypeError):  # it is a note to readers, and no setting
        return None


def _refuse_nan(folder: RunFolder, saved: Checkpoint) -> None:
    """Refuse NaN, with which an agent acts, but not as it learnt to; infinities may be a mask."""
    for name, tensor in saved.tensors.items():
        eight_bits = (
            tensor.is_floating_point() and tensor.element_size() == 1
        )  # torch knows none of their NaN
        if torch.isnan(tensor.float() if eight_bits else tensor).any():
            raise UserError(
                f"{folder.checkpoints_path}: expected numbers in the checkpoint of update {saved.update}, "
                f"got NaN in {name}; remove this checkpoint to go back to an older one, or train again"
            )


def _settings_of(folder: RunFolder, saved: Checkpoint) -> dict[str, Any]:
    """Return the settings of the run in its checkpoint, by dotted keys.

    Raises:
        UserError: if it holds none, or no number of environment steps.
    """
    held: object = sorted(saved.state)
    if {"env_steps", "config"} <= saved.state.keys():
        steps, settings = saved.state["env_steps"], saved.state["config"]
        if type(steps) is int and steps >= 0 and isinstance(settings, dict):
            return settings
        held = {"env_steps": steps, "config": settings}
    raise UserError(
        f"{folder.checkpoints_path}: expected checkpoints of `rl2meta train`, got one that holds "
        f"{_REPR.repr(held)}; restore the original checkpoints of the run"
    )


def _refuse_edits(folder: RunFolder, config: RunConfig, saved: Checkpoint) -> None:
    """Refuse a config.yaml whose settings differ from those in the checkpoint."""
    now = config.identity()
    try:
        then = completed(_settings_of(folder, saved), now, COMPONENTS)
        changed = [
            f"{_REPR.repr(key)[1:-1]} is {_REPR.repr(now.get(key))}, was {_REPR.repr(then.get(key))}"
            for key in differing(now, then)
        ]
    except RecursionError:
        changed = ["a value in the checkpoint is nested too deep"]
    if changed:
        raise UserError(
            f"{folder.config_path}: expected the settings that the run was started with, got others: "
            f"{'; '.join(changed[:_MOST])}. Undo the change, or train the changed config in another --run-dir"
        )


def load_run(path: str | Path, device: str = "cpu", trust: Collection[str] = ()) -> Run:
    """Return the run in a folder, in the state of its newest complete checkpoint.

    Args:
        path: the run folder, or ``zoo:NAME``.
        device: of the agent.
        trust: the modules that a folder from elsewhere may import, such as ``["my_package.my_module"]``; a
            folder that this user trained imports what it names.

    Raises:
        UserError: if there is no such run, it has no complete checkpoint, or it names other modules.
    """
    folder = RunFolder.open(Path(path))
    where = resolve_device(device)
    try:
        config = load_run_config(folder, trust=trust)
        set_precision(config.settings.precision)
        learner, saved = restore(folder, config, where)
    except UserError as error:
        raise damaged(folder.path, error) from None
    steps = saved.state["env_steps"]
    return Run(config, learner, folder.path, saved.update, steps, origin=origin_of(folder))
