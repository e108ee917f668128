"""A run: one training, with its agent, its task distribution, its metrics and its folder."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rl2meta.errors import UserError
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.experiments.zoo import said_path, zoo_name
from rl2meta.tasks import TaskDistribution
from rl2meta.training import Learner
from rl2meta.trial import Agent

_log = logging.getLogger("rl2meta")


class Origin(NamedTuple):
    """The run whose weights another run began with.

    Attributes:
        path: its run folder, as it was named then; None for a run without a folder.
        update: number of its updates then.
    """

    path: str | None
    update: int


@dataclass(repr=False)
class Run:
    """One training, unfinished or finished.

    Attributes:
        config: its experiment.
        learner: in its state after ``update`` updates.
        path: its run folder; None for a run without a folder.
        update: number of updates done.
        env_steps: number of environment steps made.
        rows: metrics of the updates, for a run without a folder.
        origin: the run whose weights it began with; None if its initial weights are of its own seed.
    """

    config: RunConfig
    learner: Learner
    path: Path | None = None
    update: int = 0
    env_steps: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    origin: Origin | None = None

    def __repr__(self) -> str:
        where = "nowhere on disk" if self.path is None else said_path(self.path)
        updates = self.config.settings.training.updates
        what = f"{self.config.agent_name} on {self.distribution}"
        return f"<Run of {what}, update {self.update}/{updates}, {where}>"

    @property
    def agent(self) -> Agent[Any]:
        """The agent in training."""
        return self.learner.agent

    @property
    def distribution(self) -> TaskDistribution:
        """Its task distribution; with revealed tasks if the config says so."""
        law: TaskDistribution = self.config.distribution
        return law

    @property
    def episodes_per_trial(self) -> int:
        """Number of episodes in a trial of the training."""
        return self.config.settings.training.episodes_per_trial

    @property
    def finished(self) -> bool:
        """Whether all updates of the config are done."""
        return self.update >= self.config.settings.training.updates

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row for each update: ``update``, ``env_steps``, ``mean_return``, and the learner's metrics.

        An agent of the zoo has kept only some of them.

        A warning says which rows the file of the run folder has lost.

        Raises:
            UserError: if that file cannot be read, or a row differs from what the run wrote.
        """
        if self.path is None:
            return list(self.rows)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: expected the run folder, got none; is the current folder another?")
        rows = RunFolder(self.path).read_metrics()
        if len(rows) < self.update and zoo_name(self.path) is None:
            file = RunFolder(self.path).metrics_path
            _log.warning("%s has %d rows for %d updates; the others are lost", file, len(rows), self.update)
        return rows


Callback = Callable[[Run, dict[str, Any]], bool | None]
"""Called after each update with the run and the update's metrics; returns False to stop the training."""
