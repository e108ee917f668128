"""Write the files of a run while it trains."""

from typing import Any

from rl2meta.experiments import checkpoints
from rl2meta.experiments.checkpoints import Checkpoint
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.run import Run
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.files import writing
from rl2meta.training import Learner


class Recorder:
    """Writes metrics, TensorBoard events and checkpoints of a run into its folder.

    Args:
        run: in training; its present state must already be saved.
        folder: its run folder.
    """

    def __init__(self, run: Run, folder: RunFolder) -> None:
        # slow to import, and an evaluation, which also reads this module, does not need it
        from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

        self._run, self._folder = run, folder
        self._saved = run.update
        path = folder.tensorboard_path
        with writing(path):
            self._logger = Logger(str(path), [TensorBoardOutputFormat(str(path))])

    def record(self, row: dict[str, Any]) -> None:
        """Write the metrics of one update."""
        self._folder.append_metrics(row)
        for name, value in row.items():
            self._logger.record(f"train/{name}", value)
        with writing(self._folder.tensorboard_path):
            self._logger.dump(step=row["env_steps"])

    def save_if_due(self, stopping: bool) -> None:
        """Save a checkpoint at the config's interval, after the last update, and before a stop."""
        run, every = self._run, self._run.config.settings.training.checkpoint_every
        if stopping or run.finished or run.update % every == 0:
            self.save()

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


def save_first(folder: RunFolder, checkpoint: Checkpoint) -> Checkpoint:
    """Save the checkpoint of update 0, with which every run begins, and return it."""
    checkpoints.save(folder.checkpoints_path, checkpoint)
    return checkpoint


def checkpoint_of(config: RunConfig, learner: Learner, update: int, env_steps: int) -> Checkpoint:
    """Return a checkpoint: the state from which the run can continue, and its settings."""
    state = {"env_steps": env_steps, "config": config.identity()}
    return Checkpoint(update, learner.state_dict(), state)
