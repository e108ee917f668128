"""``rl2meta train``: from a config to a run folder, and on from where a run stopped."""

import platform
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

from rl2meta import __version__, checkpoints
from rl2meta.checkpoints import Checkpoint
from rl2meta.commands.components import COMPONENTS, chosen_references, make_learner, read_config
from rl2meta.commands.progress import TrainingProgress
from rl2meta.commands.restore import load_run_config, restore
from rl2meta.config import RunConfig, load_config
from rl2meta.devices import resolve_device, set_threads
from rl2meta.errors import UserError
from rl2meta.rollout import RolloutWorker
from rl2meta.run_folder import RunFolder
from rl2meta.training import Learner, TrainingDiverged, meta_train

_STOPPED_BY_SIGNAL = 128
_PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3")


def start_run(source: str, overrides: Sequence[str], run_dir: Path) -> int:
    """Train the experiment called ``source`` in a new folder; return the exit code."""
    config = read_config(source, list(overrides))
    device = str(resolve_device(config.settings.device))
    threads = set_threads(config.settings.threads)
    text = config.to_yaml(device=device, threads=threads, versions=_versions())
    config = load_config(text, "config.yaml", (), COMPONENTS)
    chosen_references(config)  # a name that is mistyped shall not show after hours of training
    learner = make_learner(config, resolve_device(device))  # before the folder: a fault leaves none behind
    folder = RunFolder.create(run_dir, text)
    with folder.locked():
        checkpoints.save(folder.checkpoints_path, _checkpoint(learner, 0, 0))
        print(f"training {config.agent_name} on {config.distribution} in {run_dir} ({device})", flush=True)
        return _train(config, folder, learner, Checkpoint(0, {}, {"env_steps": 0}))


def resume_run(run_dir: Path, source: str | None, overrides: Sequence[str]) -> int:
    """Continue the run in ``run_dir`` from its newest checkpoint; return the exit code."""
    folder = RunFolder.open(run_dir)
    config = load_run_config(folder)
    _refuse_changes(config, source, overrides)
    set_threads(config.settings.threads)
    device = resolve_device(config.settings.device)
    with folder.locked():
        learner, saved = restore(folder, config, device, fresh_if_never_saved=True)
        if saved.update == config.settings.training.updates:
            print(f"{run_dir} is trained already: {saved.update} updates; judge the agent with:")
            print(f"  rl2meta evaluate {run_dir}", flush=True)
            return 0
        folder.truncate_metrics(saved.update)
        print(f"resuming {run_dir} at update {saved.update}", flush=True)
        return _train(config, folder, learner, saved)


class _Recorder:
    """Keeps what a run leaves on disk, shows progress, and says when to stop."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, learner: Learner, progress: TrainingProgress
    ) -> None:
        self._training = config.settings.training
        self._folder = folder
        self._learner = learner
        self._progress = progress
        self._logger = Logger(
            str(folder.tensorboard_path), [TensorBoardOutputFormat(str(folder.tensorboard_path))]
        )
        self.stop_signal: int | None = None
        self.update = 0

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Stop after this update; a second signal does what it does by default."""
        self.stop_signal = number
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    def record(self, row: dict[str, Any]) -> bool:
        """Write one update's metrics and, where due, a checkpoint; return whether to stop."""
        self.update = row["update"]
        self._folder.append_metrics(row)
        for name, value in row.items():
            self._logger.record(f"train/{name}", value)
        self._logger.dump(step=row["env_steps"])
        self._progress.show(row)
        stop = self.stop_signal is not None
        is_last = self.update == self._training.updates
        if stop or is_last or self.update % self._training.checkpoint_every == 0:
            self._save(row["env_steps"])
        return stop

    def close(self) -> None:
        """Close the TensorBoard file."""
        self._logger.close()

    def _save(self, env_steps: int) -> None:
        path = self._folder.checkpoints_path
        checkpoints.save(path, _checkpoint(self._learner, self.update, env_steps))
        checkpoints.prune(path, self._training.keep_checkpoints)


def _train(config: RunConfig, folder: RunFolder, learner: Learner, saved: Checkpoint) -> int:
    budget = config.settings.training.budget()
    worker = RolloutWorker(config.distribution, config.settings.device)
    with TrainingProgress(budget.updates, saved.update) as progress:
        recorder = _Recorder(config, folder, learner, progress)
        recorder.update = saved.update
        try:
            with _signals(recorder):
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
        finally:
            recorder.close()
    return _farewell(recorder, folder, budget.updates)


def _farewell(recorder: _Recorder, folder: RunFolder, updates: int) -> int:
    if recorder.stop_signal is not None and recorder.update < updates:
        print(f"stopped and saved at update {recorder.update}/{updates}; continue with:")
        print(f"  rl2meta train --resume --run-dir {folder.path}", flush=True)
        return _STOPPED_BY_SIGNAL + recorder.stop_signal
    print(f"trained {updates} updates; judge the agent with:")
    print(f"  rl2meta evaluate {folder.path}", flush=True)
    return 0


@contextmanager
def _signals(recorder: _Recorder) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end training after the update at hand."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, recorder.request_stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _checkpoint(learner: Learner, update: int, env_steps: int) -> Checkpoint:
    return Checkpoint(update, learner.state_dict(), {"env_steps": env_steps})


def _refuse_changes(config: RunConfig, source: str | None, overrides: Sequence[str]) -> None:
    """A resumed run keeps its config; one that is named all the same must say the same."""
    if source is None:
        return
    named = read_config(source, list(overrides))
    pinned = {"device": config.settings.device, "threads": config.settings.threads}
    ours, theirs = (_flat(yaml.safe_load(each.to_yaml(**pinned))) for each in (config, named))
    changed = [
        f"{key} is {ours.get(key)!r}, not {value!r}"
        for key, value in theirs.items()
        if ours.get(key) != value
    ]
    if changed:
        raise UserError(
            f"--resume continues a run as it was started: {'; '.join(changed)}. Resume without a config, or "
            "start a new run in another --run-dir"
        )


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _versions() -> dict[str, str]:
    return {
        "rl2meta": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }
