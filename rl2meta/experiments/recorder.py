"""Write the files of a run while it trains."""

import json
from typing import Any

from rl2meta.experiments import checkpoints
from rl2meta.experiments.checkpoints import Checkpoint
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.held_out import HELD_OUT
from rl2meta.experiments.run import Run
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.files import writing
from rl2meta.training import Learner

_ACROSS = ("update", "env_steps")  # what other metrics are drawn over


class Recorder:
    """Writes metrics, TensorBoard events and checkpoints of a run into its folder.

    Args:
        run: in training; its present state must already be saved.
        folder: its run folder.
    """

    def __init__(self, run: Run, folder: RunFolder) -> None:
        # slow to import, and an evaluation, which also reads this module, does not need it
        from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat

        self._run, self._folder = run, folder
        self._saved = run.update
        path = folder.tensorboard_path
        with writing(path):
            self._logger = Logger(str(path), [TensorBoardOutputFormat(str(path))])
            self._logger.record("hparams", HParam(_settings(run.config), _curves(run.config)))
            self._logger.dump(step=run.env_steps)

    def record(self, row: dict[str, Any]) -> None:
        """Write the metrics of one update; in TensorBoard, curves are over environment steps."""
        self._folder.append_metrics(row)
        for name, value in row.items():
            if name not in _ACROSS:
                self._logger.record(_curve(name), value)
        with writing(self._folder.tensorboard_path):
            self._logger.dump(step=row["env_steps"])

    def save(self) -> None:
        """Save the present state of the run, unless it is already saved."""
        run, path = self._run, self._folder.checkpoints_path
        if run.update == self._saved:
            return
        checkpoints.save(path, checkpoint_of(run.config, run.learner, run.update, run.env_steps))
        checkpoints.prune(path, run.config.settings.training.keep_checkpoints)
        self._saved = run.update

    def close(self) -> None:
        """Close the TensorBoard file."""
        with writing(self._folder.tensorboard_path):
            self._logger.close()


def must_save(run: Run, stopping: bool) -> bool:
    """Return whether a checkpoint is due: at the config's interval, after the last update, before a stop."""
    return stopping or run.finished or run.update % run.config.settings.training.checkpoint_every == 0


def _curve(name: str) -> str:
    """Return the name of a metric's curve in TensorBoard, such as train/kl or held_out/return."""
    return f"held_out/{name.removeprefix(HELD_OUT)}" if name.startswith(HELD_OUT) else f"train/{name}"


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings for TensorBoard's tab of hyper-parameters."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
        for key, value in config.identity().items()
    }


def _curves(config: RunConfig) -> dict[str, float]:
    """Return the curves that TensorBoard shows beside the hyper-parameters."""
    judged = config.settings.training.evaluate_every is not None
    return dict.fromkeys(
        [*(["held_out/return", "held_out/regret"] if judged else []), "train/mean_return"], 0.0
    )


def save_first(folder: RunFolder, checkpoint: Checkpoint) -> Checkpoint:
    """Save the checkpoint of update 0, with which every run begins, and return it."""
    checkpoints.save(folder.checkpoints_path, checkpoint)
    return checkpoint


def checkpoint_of(config: RunConfig, learner: Learner, update: int, env_steps: int) -> Checkpoint:
    """Return a checkpoint: the state from which the run can continue, and its settings."""
    state = {"env_steps": env_steps, "config": config.identity()}
    return Checkpoint(update, learner.state_dict(), state)
