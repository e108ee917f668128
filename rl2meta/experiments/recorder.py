"""What a run leaves on disk while it trains."""

from types import FrameType
from typing import Any

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

from rl2meta.commands.progress import TrainingProgress
from rl2meta.commands.signals import Interrupted
from rl2meta.experiments import checkpoints
from rl2meta.experiments.checkpoints import Checkpoint
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.files import writing
from rl2meta.training import Learner


class Recorder:
    """Keeps metrics, TensorBoard events and checkpoints, shows progress, and says when to stop.

    Attributes:
        update: the last update that was recorded.
        interrupted: the signal that asked to stop, if one did.
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, learner: Learner, progress: TrainingProgress, update: int
    ) -> None:
        self._config = config
        self._folder = folder
        self._learner = learner
        self._progress = progress
        self.update = update
        self.interrupted: Interrupted | None = None
        self._saved = update
        self._env_steps = 0
        path = folder.tensorboard_path
        with writing(path):
            self._logger = Logger(str(path), [TensorBoardOutputFormat(str(path))])

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Stop after this update; a second signal ends it at once."""
        if self.interrupted is not None:
            raise self.interrupted
        self.interrupted = Interrupted(number)

    def record(self, row: dict[str, Any]) -> bool:
        """Write one update's metrics and, where due, a checkpoint; return whether to stop."""
        self.update, self._env_steps = row["update"], row["env_steps"]
        self._folder.append_metrics(row)
        for name, value in row.items():
            self._logger.record(f"train/{name}", value)
        with writing(self._folder.tensorboard_path):
            self._logger.dump(step=row["env_steps"])
        training = self._config.settings.training
        stop = self.interrupted is not None
        if stop or self.update == training.updates or self.update % training.checkpoint_every == 0:
            self.save()
        self._progress.show(row)
        return stop

    def close(self) -> None:
        """Close the TensorBoard file."""
        with writing(self._folder.tensorboard_path):
            self._logger.close()

    def save(self) -> None:
        """Save the learner as it is, unless that was done already."""
        if self.update == self._saved:
            return
        path = self._folder.checkpoints_path
        checkpoints.save(path, checkpoint_of(self._config, self._learner, self.update, self._env_steps))
        checkpoints.prune(path, self._config.settings.training.keep_checkpoints)
        self._saved = self.update


def checkpoint_of(config: RunConfig, learner: Learner, update: int, env_steps: int) -> Checkpoint:
    """Return all that a run needs to go on, and what it was trained as."""
    state = {"env_steps": env_steps, "config": config.identity()}
    return Checkpoint(update, learner.state_dict(), state)
