"""Train an experiment, or resume a run that stopped."""

import logging
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl2meta.devices import numerics_restored, resolve_device, set_precision, set_threads
from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints
from rl2meta.experiments.agreement import refuse_drift, refuse_others, share, versions
from rl2meta.experiments.components import COMPONENTS, chosen_references, make_learner, read_config
from rl2meta.experiments.composition import train_learner
from rl2meta.experiments.config import JUDGED, WHERE, WORKERS, RunConfig, differing, load_config
from rl2meta.experiments.held_out import HeldOut, held_out_of, is_due
from rl2meta.experiments.inheriting import begin_with
from rl2meta.experiments.recorder import Recorder, checkpoint_of, must_save, save_first
from rl2meta.experiments.rehearsal import rehearse
from rl2meta.experiments.restore import load_run, load_run_config, origin_of, restore
from rl2meta.experiments.run import Callback, Run
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.experiments.trust import modules_in
from rl2meta.experiments.yaml_text import overrides_of, text_of
from rl2meta.kernels import resolve_kernels, set_kernels
from rl2meta.ranks import ONE, Ranks
from rl2meta.shards import Shards
from rl2meta.training import TrainingDiverged, refuse_shards
from rl2meta.workers.faults import EnvironmentFault

Config = str | Path | Mapping[str, Any]
Overrides = Mapping[str, Any] | Sequence[str]
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
    ranks: Ranks = ONE,
) -> Run:
    """Train the agent of an experiment.

    This sets torch's number of CPU threads, its precision and the kernels to those of the config, because the
    exact numbers of a run depend on them.

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
        ranks: the processes that train together (``rl2meta.ranks.joined``); each calls this function. Only
            the first reads ``start_from`` and writes the folder.

    Returns:
        The run; it is unfinished if a callback stopped it on any rank.

    Raises:
        UserError: for a config with faults, a folder that is in use, weights that do not fit, a training
            that diverges, or ranks that differ or fail.
    """
    refuse_callbacks(callbacks)
    experiment, text, device = settled(read_config(config, overrides_of(overrides), trust), ranks)
    refuse_others(ranks, experiment)
    rehearse(experiment, device)  # before the folder exists, so that a fault leaves no folder
    chosen_references(experiment)  # finds a mistyped name now and not after hours of training
    run = _new(experiment, device)
    refuse_shards(run.learner, Shards(experiment.settings.training.shards, ranks))

    def begin() -> RunFolder | None:
        said = ""
        if start_from is not None:
            known = {*trust, *modules_in(experiment.flat())}
            with numerics_restored():  # to load a run sets its precision
                other = start_from if isinstance(start_from, Run) else load_run(start_from, trust=known)
            run.origin = begin_with(run, other)
            said = text_of({"started_from": run.origin._asdict()})
        if run_dir is None:
            return None
        first = checkpoint_of(experiment, run.learner, 0, 0)
        return RunFolder.create(Path(run_dir), text + said, lambda new: save_first(new, first))

    folder = ranks.together(lambda: begin() if ranks.leads else None)
    share(ranks, run)
    with ExitStack() as stack:
        if folder is not None:
            run.path = folder.path
            stack.enter_context(folder.locked())
        return _train(run, folder, device, callbacks, on_start, ranks)


def resume(
    run_dir: str | Path,
    config: Config | None = None,
    overrides: Overrides | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[Run], None] | None = None,
    trust: Collection[str] = (),
    ranks: Ranks = ONE,
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
        ranks: the processes that train together, as many as at the start of the run or not; only the first
            needs the folder.

    Raises:
        UserError: if there is no such run, it is in use, or a setting differs from the start of the run.
    """
    refuse_callbacks(callbacks)
    given, path = overrides_of(overrides), Path(run_dir)
    text = ranks.of_the_leader(lambda: _config_of(path, config, given, trust).to_yaml())
    experiment = load_config(text, "config.yaml", (), COMPONENTS)
    set_threads(experiment.settings.threads)
    set_precision(experiment.settings.precision)
    device = resolve_device(experiment.settings.device, ranks.on_machine)
    # A folder that says nothing is of a version without compiled kernels.
    set_kernels(resolve_kernels(experiment.settings.kernels or "torch", device))
    ranks.agree({"settings": given})
    refuse_others(ranks, experiment)
    with ExitStack() as stack:
        new = partial(_continued, path, stack) if ranks.leads else _new
        run = ranks.together(lambda: new(experiment, device))
        share(ranks, run)
        if run.finished:
            return run
        return _train(run, RunFolder(path) if ranks.leads else None, device, callbacks, on_start, ranks)


def _config_of(
    run_dir: Path, config: Config | None, given: Sequence[str], trust: Collection[str]
) -> RunConfig:
    """Return the experiment of a run folder, with the settings that a resumed run may be given.

    Raises:
        UserError: if there is no run, or ``config`` or other settings differ from those of the run.
    """
    where = [override for override in given if override.startswith(_FREE)]
    named = None if config is None else read_config(config, given, trust)
    known = {*trust, *(() if named is None else modules_in(named.flat()))}
    experiment = load_run_config(RunFolder.open(run_dir), where, known)
    if named is not None:
        _refuse_changes(experiment, named)
    elif where != given:
        others = " ".join(override for override in given if override not in where)
        raise UserError(
            f"--resume continues a run as it was started: expected no override but {WORKERS}KEY and "
            f"{', '.join(JUDGED)}, got {others}"
        )
    return experiment


def _new(experiment: RunConfig, device: torch.device) -> Run:
    return Run(experiment, make_learner(experiment, device))


def _continued(run_dir: Path, stack: ExitStack, experiment: RunConfig, device: torch.device) -> Run:
    """Return the run in a folder, in the state of its newest checkpoint; ``stack`` keeps it locked."""
    folder = RunFolder.open(run_dir)
    stack.enter_context(folder.locked())
    learner, saved = restore(folder, experiment, device, fresh_if_never_saved=True)
    steps = saved.state["env_steps"]
    run = Run(experiment, learner, folder.path, saved.update, steps, origin=origin_of(folder))
    checkpoints.prune(folder.checkpoints_path, experiment.settings.training.keep_checkpoints)
    if not run.finished and folder.truncate_metrics(run.update) < run.update:
        _log.warning("%s lacks rows of updates before %d", folder.metrics_path, run.update)
    return run


def settled(config: RunConfig, ranks: Ranks = ONE) -> tuple[RunConfig, str, torch.device]:
    """Set threads, precision and kernels; return the experiment with its actual device, threads and kernels.

    A run in shards has one thread, unless the config says another number: so its numbers are the same with
    any number of ranks.

    Returns:
        The experiment, its text for a run folder, and the device.
    """
    device = resolve_device(config.settings.device, ranks.on_machine)
    threads = set_threads(config.settings.threads or (1 if config.settings.training.shards > 1 else None))
    set_precision(config.settings.precision)
    training = config.settings.training
    episodes = training.updates * training.trials_per_update * training.episodes_per_trial
    gains = COMPONENTS.agents[config.agent_name].compiled(config.agent)
    steps = episodes * config.law.horizon if gains else 0
    kernels = resolve_kernels(config.settings.kernels, device, steps)
    set_kernels(kernels)
    text = config.to_yaml(device=str(device), threads=threads, kernels=kernels, versions=versions(kernels))
    return load_config(text, "config.yaml", (), COMPONENTS), text, device


def _train(
    run: Run,
    folder: RunFolder | None,
    device: torch.device,
    callbacks: Sequence[Callback],
    on_start: Callable[[Run], None] | None,
    ranks: Ranks,
) -> Run:
    with ExitStack() as stack:
        recorder = None if folder is None else Recorder(run, folder)
        if recorder is not None:
            stack.callback(recorder.close)
        held_out = held_out_of(run.config, device, ranks)
        stack.callback(held_out.close)
        if on_start is not None:
            with numerics_restored():
                on_start(run)
        try:
            train_learner(
                run.config,
                run.learner,
                device,
                lambda row: _after_update(run, held_out, recorder, callbacks, row, ranks),
                start=run.update,
                env_steps=run.env_steps,
                ranks=ranks,
            )
        except TrainingDiverged as error:
            where = "" if folder is None else f". Its checkpoints are in {folder.path}"
            raise UserError(f"training diverged at {error}{where}") from None
        except EnvironmentFault as error:
            raise (_stopped_by(error, run, recorder) if ranks.leads else UserError(str(error))) from None
    return run


def _after_update(
    run: Run,
    held_out: HeldOut,
    recorder: Recorder | None,
    callbacks: Sequence[Callback],
    row: dict[str, Any],
    ranks: Ranks,
) -> bool:
    """Judge the agent if it is due, record the update, call the callbacks, and return whether to stop."""
    run.update, run.env_steps = row["update"], row["env_steps"]
    record = run.rows.append if recorder is None else recorder.record
    try:
        if is_due(run.config.settings.training, run.update):
            row |= held_out.metrics(run.agent)
    finally:  # if its environments fail, the run is saved after this update, and so needs its row
        ranks.together(lambda: record(row))
    with numerics_restored():  # an evaluation in a callback sets them
        wishes = ranks.together(lambda: [_stops(callback(run, row)) for callback in callbacks])  # calls all
    stop = bool(ranks.largest(any(wishes)))  # if one rank stops, all do
    if must_save(run, stop):
        refuse_drift(ranks, run.learner, run.update)
        ranks.together(lambda: None if recorder is None else recorder.save())
    return stop


def _stops(wish: Any) -> bool:
    """Return whether a callback's result is False: Python's, or that of an array or a tensor."""
    return isinstance(wish, bool | np.bool_ | torch.Tensor) and not wish


def refuse_callbacks(callbacks: Any) -> None:
    """Refuse callbacks that are no collection of functions, before anything is trained.

    Raises:
        UserError: if they are something else.
    """
    if callable(callbacks) or not all(map(callable, callbacks)):
        raise UserError(f"callbacks: expected a list of functions, got {callbacks!r:.80}; give callbacks=[f]")


def _stopped_by(error: EnvironmentFault, run: Run, recorder: Recorder | None) -> UserError:
    """Save a run whose environments failed, and return an error that says how to continue."""
    if recorder is None:
        return UserError(f"{error}\nstopped at update {run.update}; mend the environment and train again")
    recorder.save()
    assert run.path is not None  # a run with a recorder has a folder
    if run.finished:
        return UserError(
            f"{error}\nthe training is complete and saved, but its agent was not judged; mend the "
            f"environment and continue with:\n  rl2meta evaluate {quoted(run.path)}"
        )
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
