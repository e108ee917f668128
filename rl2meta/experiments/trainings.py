"""Train an experiment, or resume a run that stopped."""

import logging
import platform
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rl2meta import __version__
from rl2meta.devices import resolve_device, set_precision, set_threads
from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints
from rl2meta.experiments.components import COMPONENTS, chosen_references, make_learner, read_config
from rl2meta.experiments.composition import train_learner
from rl2meta.experiments.config import JUDGED, WHERE, WORKERS, RunConfig, differing, load_config
from rl2meta.experiments.held_out import HeldOut, held_out_of, is_due
from rl2meta.experiments.inheriting import begin_with
from rl2meta.experiments.recorder import Recorder, checkpoint_of, save_first
from rl2meta.experiments.rehearsal import rehearse
from rl2meta.experiments.restore import load_run, load_run_config, origin_of, restore
from rl2meta.experiments.run import Callback, Run
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.experiments.trust import modules_in
from rl2meta.experiments.yaml_text import overrides_of, text_of
from rl2meta.training import TrainingDiverged
from rl2meta.workers.faults import EnvironmentFault

Config = str | Path | Mapping[str, Any]
Overrides = Mapping[str, Any] | Sequence[str]
_PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3")
_FREE = (WORKERS, *JUDGED)  # settings that a resumed run may be given
_log = logging.getLogger("rl2meta")


def train(
    config: Config,
    overrides: Overrides | None = None,
    *,
    run_dir: str | Path | None = None,
    start_from: Run | str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[Run], None] | None = None,
    trust: Collection[str] = (),
) -> Run:
    """Train the agent of an experiment.

    This sets torch's number of CPU threads and its precision to those of the config, because the exact
    numbers of a run depend on them.

    Args:
        config: the name of a shipped config, a YAML file, or its sections as a mapping.
        overrides: settings to change, by dotted key: ``{"agent.core.hidden_size": 64}``; or as text,
            ``["agent.core.hidden_size=64"]``.
        run_dir: a new folder for config, metrics, TensorBoard events and checkpoints; None: write nothing.
        start_from: another run of the same agent, whose weights are the initial weights of this one; what is
            carried over says ``inheriting.begin_with``.
        callbacks: each is called after each update with the run and the update's metrics; if one returns
            False, the training saves a checkpoint and stops.
        on_start: called with the run before its first update.
        trust: modules that ``start_from`` may import beyond those of ``config``, if it was trained elsewhere;
            also those of a ``config`` that is the config.yaml of a run folder.

    Returns:
        The run; it is unfinished if a callback stopped it.

    Raises:
        UserError: for a config with faults, a folder that is in use, weights that do not fit, or a training
            that diverges.
    """
    experiment, text, device = settled(read_config(config, overrides_of(overrides), trust))
    rehearse(experiment, device)  # before the folder exists, so that a fault leaves no folder
    chosen_references(experiment)  # finds a mistyped name now and not after hours of training
    learner = make_learner(experiment, device)
    run = Run(experiment, learner)
    if start_from is not None:
        run.origin = begin_with(run, _loaded(start_from, {*trust, *modules_in(experiment.flat())}))
        text += text_of({"started_from": run.origin._asdict()})
    if run_dir is None:
        return _train(run, None, device, callbacks, on_start)
    first = checkpoint_of(experiment, learner, 0, 0)
    folder = RunFolder.create(Path(run_dir), text, lambda new: save_first(new, first))
    run.path = folder.path
    with folder.locked():
        return _train(run, folder, device, callbacks, on_start)


def resume(
    run_dir: str | Path,
    config: Config | None = None,
    overrides: Overrides | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[Run], None] | None = None,
    trust: Collection[str] = (),
) -> Run:
    """Continue the run in a folder from its newest checkpoint; return a finished run without changes.

    Args:
        run_dir: the run folder.
        config: the config that the run was started with, to check that it is the same; None: no check.
        overrides: settings of the workers, and of how the agent is judged while it trains
            (``training.evaluate_every``, ``training.evaluation_tasks``), which change nothing that is learnt;
            with ``config``, also those of the start.
        callbacks: as for ``train``.
        on_start: called with the run before its next update; not called for a finished run.
        trust: modules that a folder from elsewhere may import, beyond those that ``config`` names.

    Raises:
        UserError: if there is no such run, it is in use, or a setting differs from the start of the run.
    """
    folder, given = RunFolder.open(Path(run_dir)), overrides_of(overrides)
    where = [override for override in given if override.startswith(_FREE)]
    named = None if config is None else read_config(config, given, trust)
    known = {*trust, *(() if named is None else modules_in(named.flat()))}
    experiment = load_run_config(folder, where, known)
    if named is not None:
        _refuse_changes(experiment, named)
    elif where != given:
        others = " ".join(override for override in given if override not in where)
        raise UserError(
            f"--resume continues a run as it was started: expected no override but {WORKERS}KEY and "
            f"{', '.join(JUDGED)}, got {others}"
        )
    set_threads(experiment.settings.threads)
    set_precision(experiment.settings.precision)
    device = resolve_device(experiment.settings.device)
    with folder.locked():
        learner, saved = restore(folder, experiment, device, fresh_if_never_saved=True)
        steps = saved.state["env_steps"]
        run = Run(experiment, learner, folder.path, saved.update, steps, origin=origin_of(folder))
        checkpoints.prune(folder.checkpoints_path, experiment.settings.training.keep_checkpoints)
        if run.finished:
            return run
        if folder.truncate_metrics(run.update) < run.update:
            _log.warning("%s lacks rows of updates before %d", folder.metrics_path, run.update)
        return _train(run, folder, device, callbacks, on_start)


def _loaded(run: Run | str | Path, trust: Collection[str]) -> Run:
    return run if isinstance(run, Run) else load_run(run, trust=trust)


def settled(config: RunConfig) -> tuple[RunConfig, str, torch.device]:
    """Set threads and precision; return the experiment with its actual device and threads.

    Returns:
        The experiment, its text for a run folder, and the device.
    """
    device = resolve_device(config.settings.device)
    threads = set_threads(config.settings.threads)
    set_precision(config.settings.precision)
    text = config.to_yaml(device=str(device), threads=threads, versions=_versions())
    return load_config(text, "config.yaml", (), COMPONENTS), text, device


def _train(
    run: Run,
    folder: RunFolder | None,
    device: torch.device,
    callbacks: Sequence[Callback],
    on_start: Callable[[Run], None] | None,
) -> Run:
    with ExitStack() as stack:
        recorder = None if folder is None else Recorder(run, folder)
        if recorder is not None:
            stack.callback(recorder.close)
        held_out = held_out_of(run.config, device)
        stack.callback(held_out.close)
        if on_start is not None:
            on_start(run)
        try:
            train_learner(
                run.config,
                run.learner,
                device,
                lambda row: _after_update(run, held_out, recorder, callbacks, row),
                start=run.update,
                env_steps=run.env_steps,
            )
        except TrainingDiverged as error:
            where = "" if folder is None else f". Its checkpoints are in {folder.path}"
            raise UserError(f"training diverged at {error}{where}") from None
        except EnvironmentFault as error:
            raise _stopped_by(error, run, recorder) from None
    return run


def _after_update(
    run: Run,
    held_out: HeldOut,
    recorder: Recorder | None,
    callbacks: Sequence[Callback],
    row: dict[str, Any],
) -> bool:
    """Judge the agent if it is due, record the update, call the callbacks, and return whether to stop."""
    run.update, run.env_steps = row["update"], row["env_steps"]
    try:
        if is_due(run.config.settings.training, run.update):
            row |= held_out.metrics(run.agent)
    finally:  # if its environments fail, the run is saved after this update, and so needs its row
        if recorder is None:
            run.rows.append(row)
        else:
            recorder.record(row)
    stop = any([callback(run, row) is False for callback in callbacks])  # calls all of them
    if recorder is not None:
        recorder.save_if_due(stop)
    return stop


def _stopped_by(error: EnvironmentFault, run: Run, recorder: Recorder | None) -> UserError:
    """Save a run whose environments failed, and return an error that says how to continue."""
    if recorder is None:
        return UserError(f"{error}\nstopped at update {run.update}; mend the environment and train again")
    recorder.save()
    assert run.path is not None  # a run with a recorder has a folder
    return UserError(
        f"{error}\nstopped and saved at update {run.update}/{run.config.settings.training.updates}; mend the "
        f"environment and continue with:\n  {resume_command(run.path)}"
    )


def resume_command(path: Path) -> str:
    """Return the command that resumes the run in a folder."""
    return f"rl2meta train --resume --run-dir {quoted(path)}"


def quoted(path: Path) -> str:
    """Return a path quoted for the shell."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def _refuse_changes(config: RunConfig, named: RunConfig) -> None:
    """Refuse a config that differs from the config of the run to resume."""
    changed = list(_changes(config.flat(), named.flat()))
    if changed:
        raise UserError(
            f"--resume continues a run as it was started: {'; '.join(changed)}. Resume without a config, or "
            "start a new run in another --run-dir"
        )


def _changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    for key in differing(ours, theirs):
        if not key.startswith((*WHERE, *JUDGED)):
            yield f"{key} is {ours.get(key)!r}, not {theirs.get(key)!r}"


def _versions() -> dict[str, str]:
    return {
        "rl2meta": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }
