"""Runs that differ in the seed alone, in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.run import Run


@dataclass(repr=False)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        runs: in the order of their seeds, at least one.
        path: the folder of the group; None for a group without a folder.
    """

    runs: Sequence[Run]
    path: Path | None = None

    def __repr__(self) -> str:
        where = "nowhere on disk" if self.path is None else self.path
        seeds = ", ".join(map(str, self.seeds))
        return f"<Group of {self.config.agent_name} on {self.config.distribution}, seeds {seeds}, {where}>"

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [run.config.settings.seed for run in self.runs]

    @property
    def config(self) -> RunConfig:
        """The experiment of the first run; the others differ in the seed."""
        return self.runs[0].config

    @property
    def finished(self) -> bool:
        """Whether all runs are finished, and there are some."""
        return len(self.runs) > 0 and all(run.finished for run in self.runs)
