"""``rl2meta train``: from a config to a run folder, and on from where a run stopped."""

import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rl2meta import __version__
from rl2meta.commands.progress import TrainingProgress, say
from rl2meta.commands.signals import Interrupted, handled
from rl2meta.devices import resolve_device, set_precision, set_threads
from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints
from rl2meta.experiments.checkpoints import Checkpoint
from rl2meta.experiments.components import (
    COMPONENTS,
    chosen_references,
    make_learner,
    make_training_worker,
    read_config,
)
from rl2meta.experiments.config import WHERE, WORKERS, RunConfig, differing, load_config
from rl2meta.experiments.recorder import Recorder, checkpoint_of
from rl2meta.experiments.rehearsal import rehearse
from rl2meta.experiments.restore import restore
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.training import Learner, TrainingDiverged, meta_train
from rl2meta.workers.faults import EnvironmentFault

_PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3")


def start_run(source: str, overrides: Sequence[str], run_dir: Path) -> int:
    """Train the experiment called ``source`` in a new folder; return the exit code."""
    config = read_config(source, list(overrides))
    device = str(resolve_device(config.settings.device))
    threads = set_threads(config.settings.threads)
    set_precision(config.settings.precision)
    text = config.to_yaml(device=device, threads=threads, versions=_versions())
    config = load_config(text, "config.yaml", (), COMPONENTS)
    rehearse(config, resolve_device(device))  # before the folder: a fault leaves none behind
    chosen_references(config)  # a name that is mistyped shall not show after hours of training
    learner = make_learner(config, resolve_device(device))
    folder = RunFolder.create(run_dir, text)
    with folder.locked():
        first = checkpoint_of(config, learner, 0, 0)
        checkpoints.save(folder.checkpoints_path, first)
        say(f"training {config.agent_name} on {config.distribution} in {run_dir} ({device})")
        return _train(config, folder, learner, first)


def resume_run(run_dir: Path, source: str | None, overrides: Sequence[str]) -> int:
    """Continue the run in ``run_dir`` from its newest checkpoint; return the exit code.

    Of its settings none may be another but those of the workers, which change no result.
    """
    folder = RunFolder.open(run_dir)
    where = [override for override in overrides if override.startswith(WORKERS)]
    config = load_config(folder.config_text(), str(folder.config_path), where, COMPONENTS)
    if source is not None:
        _refuse_changes(config, read_config(source, list(overrides)))
    elif where != list(overrides):
        others = " ".join(override for override in overrides if override not in where)
        raise UserError(
            f"--resume continues a run as it was started: expected no override but {WORKERS}KEY, got {others}"
        )
    set_threads(config.settings.threads)
    set_precision(config.settings.precision)
    device = resolve_device(config.settings.device)
    with folder.locked():
        learner, saved = restore(folder, config, device, fresh_if_never_saved=True)
        if saved.update >= config.settings.training.updates:
            say(f"{run_dir} is trained already: {saved.update} updates; judge the agent with:")
            say(f"  rl2meta evaluate {_quoted(run_dir)}")
            return 0
        if folder.truncate_metrics(saved.update) < saved.update:
            say(f"warning: {folder.metrics_path} lacks rows of updates before {saved.update}")
        say(f"resuming {run_dir} at update {saved.update} ({device})")
        return _train(config, folder, learner, saved)


def _train(config: RunConfig, folder: RunFolder, learner: Learner, saved: Checkpoint) -> int:
    budget = config.settings.training.budget()
    worker = make_training_worker(config, resolve_device(config.settings.device))
    with TrainingProgress(budget.updates, saved.update) as progress:
        recorder = Recorder(config, folder, learner, progress, saved.update)
        try:
            with handled(recorder.request_stop):
                meta_train(
                    learner,
                    config.distribution,
                    worker,
                    budget,
                    config.settings.seed,
                    recorder.record,
                    start=saved.update,
                    env_steps=saved.state["env_steps"],
                )
        except TrainingDiverged as error:
            raise UserError(f"training diverged at {error}. Its checkpoints are in {folder.path}") from None
        except EnvironmentFault as error:
            recorder.save()
            raise UserError(
                f"{error}\nstopped and saved at update {recorder.update}/{budget.updates}; mend the "
                f"environment and continue with:\n  {_resume(folder)}"
            ) from None
        except Interrupted as stop:
            return _stopped(stop, folder, "stopped at once; from the newest checkpoint continue with:")
        finally:
            worker.close()
            recorder.close()
    if recorder.interrupted is not None and recorder.update < budget.updates:
        said = f"stopped and saved at update {recorder.update}/{budget.updates}; continue with:"
        return _stopped(recorder.interrupted, folder, said)
    say(f"trained {budget.updates} updates; judge the agent with:")
    say(f"  rl2meta evaluate {_quoted(folder.path)}")
    return 0


def _stopped(stop: Interrupted, folder: RunFolder, said: str) -> int:
    say(said)
    say(f"  {_resume(folder)}")
    return stop.exit_code


def _resume(folder: RunFolder) -> str:
    return f"rl2meta train --resume --run-dir {_quoted(folder.path)}"


def _refuse_changes(config: RunConfig, named: RunConfig) -> None:
    """A resumed run keeps its config; one that is named all the same must say the same."""
    ours, theirs = config.flat(), named.flat()
    changed = [
        f"{key} is {ours.get(key)!r}, not {theirs.get(key)!r}"
        for key in differing(ours, theirs)
        if not key.startswith(WHERE)
    ]
    if changed:
        raise UserError(
            f"--resume continues a run as it was started: {'; '.join(changed)}. Resume without a config, or "
            "start a new run in another --run-dir"
        )


def _quoted(path: Path) -> str:
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def _versions() -> dict[str, str]:
    return {
        "rl2meta": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }
