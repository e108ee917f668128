"""What a study of ``rl2meta tune`` is: its options, and all that a process needs to take part in it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rl2meta.experiments.components import read_config
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.judging import within
from rl2meta.experiments.search_space import Space

if TYPE_CHECKING:  # studies loads Optuna, which need not be there
    from rl2meta.experiments.studies import StudySettings

MOST_JOBS, MOST_TRIALS, MOST_SEEDS = 1024, 10**6, 1000
_MOST_TASKS = 10**6


_RANGES = {
    "n_trials": (1, MOST_TRIALS),
    "n_jobs": (1, MOST_JOBS),
    "num_seeds": (1, MOST_SEEDS),
    "n_evaluations": (1, MOST_TRIALS),
    "n_startup_trials": (0, MOST_TRIALS),
    "tasks": (2, _MOST_TASKS),
}
"""By the option's name: its smallest and its largest number."""


@dataclass(frozen=True)
class TuningOptions:
    """How a study goes; the names are those of the options of ``rl2meta tune``.

    Attributes:
        n_trials: number of trials of the study that end, in all processes together.
        n_jobs: number of processes that this call starts.
        sampler: ``tpe`` or ``random``.
        pruner: ``median``, ``halving`` or ``none``.
        num_seeds: number of trainings in each trial; the mean over them is the trial's value.
        n_evaluations: how many times the first training of a trial is judged; each time it may be pruned.
        n_startup_trials: the first trials, which are drawn at random, and before which none is pruned.
        tasks: number of tuning tasks.
        study_name: of the study in the storage.
        storage: the journal file that processes and machines share; None: study.log in the folder.
    """

    n_trials: int = 50
    n_jobs: int = 1
    sampler: str = "tpe"
    pruner: str = "median"
    num_seeds: int = 2
    n_evaluations: int = 5
    n_startup_trials: int = 10
    tasks: int = 500
    study_name: str = "study"
    storage: Path | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            number = within(f"--{name.replace('_', '-')}", getattr(self, name), low, high)
            object.__setattr__(self, name, number)  # Python's own number; the class is frozen


@dataclass(frozen=True)
class Plan:
    """All that a process needs to take part in a study; pickle takes it.

    Attributes:
        source, overrides, trust: the experiment that is tuned, as for ``train``.
        space: what is varied.
        options: how.
        storage: the journal file.
    """

    source: str
    overrides: list[str]
    space: Space
    options: TuningOptions
    storage: Path
    trust: frozenset[str] = field(default_factory=frozenset)

    def config(self, *more: str) -> RunConfig:
        """Return the experiment with more overrides."""
        return read_config(self.source, [*self.overrides, *more], self.trust)

    def study_settings(self) -> "StudySettings":
        """Return what the study is."""
        from rl2meta.experiments.studies import StudySettings

        options, config = self.options, self.config()
        fixed = {key: value for key, value in config.identity().items() if key not in self.space}
        judged = {"evaluation.episodes_per_trial": config.settings.evaluation.episodes_per_trial}
        counts = {
            "--num-seeds": options.num_seeds,
            "--n-evaluations": options.n_evaluations,
            "--tasks": options.tasks,
        }
        return StudySettings(
            name=options.study_name,
            storage=self.storage,
            space=self.space,
            identity={**fixed, **judged, **counts},
            n_trials=options.n_trials,
            sampler=options.sampler,
            pruner=options.pruner,
            startup_trials=options.n_startup_trials,
            warm_up=options.n_evaluations // 3,
            seed=config.settings.seed,
        )
