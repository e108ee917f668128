"""A training that was begun or finished: its agent, its law, its metrics, and where it lies on disk."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.tasks import TaskDistribution
from rl2meta.training import Learner
from rl2meta.trial import Agent


@dataclass(repr=False)
class Run:
    """A training, as far as it has come.

    Attributes:
        config: its experiment.
        learner: what learns; its state is that of ``update``.
        path: its run folder; None for one that was trained without.
        update: updates done.
        env_steps: environment interactions made.
    """

    config: RunConfig
    learner: Learner
    path: Path | None = None
    update: int = 0
    env_steps: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        where = "nowhere on disk" if self.path is None else self.path
        updates = self.config.settings.training.updates
        what = f"{self.config.agent_name} on {self.distribution}"
        return f"<Run of {what}, update {self.update}/{updates}, {where}>"

    @property
    def agent(self) -> Agent[Any]:
        """What is trained."""
        return self.learner.agent

    @property
    def distribution(self) -> TaskDistribution:
        """The law of its tasks, as the agent meets it."""
        law: TaskDistribution = self.config.distribution
        return law

    @property
    def episodes_per_trial(self) -> int:
        """Episodes in a trial, as in training."""
        return self.config.settings.training.episodes_per_trial

    @property
    def finished(self) -> bool:
        """Whether every update that the config asks for is done."""
        return self.update >= self.config.settings.training.updates

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row for each update: ``update``, ``env_steps``, ``mean_return``, and what the learner tells.

        Raises:
            UserError: if the file of the run folder cannot be read.
        """
        return list(self.rows) if self.path is None else RunFolder(self.path).read_metrics()


Callback = Callable[[Run, dict[str, Any]], bool | None]
"""Called after each update with the run and the update's metrics; returns False to stop the training."""
