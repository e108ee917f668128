"""Tune the settings of an experiment: train with many, and keep those whose agents earn most on tuning tasks.

Tuning tasks are held-out tasks with a seed of their own, so they are neither tasks of the training nor those
of the final evaluation; and the trainings of a study have seeds of their own. A *trial* is here what Optuna
calls so: one choice of the settings, and the trainings with it.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl2meta.devices import resolve_device
from rl2meta.errors import UserError
from rl2meta.experiments.components import make_worker, read_config
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.contest import Contest
from rl2meta.experiments.judging import Say, silent, within
from rl2meta.experiments.rehearsal import rehearse
from rl2meta.experiments.run import Run
from rl2meta.experiments.search_space import Space, read_space, refuse_misfits, settings_text, short_keys
from rl2meta.experiments.side_by_side import is_orphan, side_by_side
from rl2meta.experiments.trainings import train
from rl2meta.randomness import derive
from rl2meta.training import TrainingDiverged
from rl2meta.workers.faults import EnvironmentFault

if TYPE_CHECKING:  # studies loads Optuna, which need not be there
    from rl2meta.experiments.studies import SharedStudy, StudySettings

MOST_JOBS, MOST_TRIALS, MOST_SEEDS = 1024, 10**6, 1000
_MOST_TASKS = 10**6


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
        within("--n-trials", self.n_trials, 1, MOST_TRIALS)
        within("--n-jobs", self.n_jobs, 1, MOST_JOBS)
        within("--num-seeds", self.num_seeds, 1, MOST_SEEDS)
        within("--n-evaluations", self.n_evaluations, 1, MOST_TRIALS)
        within("--n-startup-trials", self.n_startup_trials, 0, MOST_TRIALS)
        within("--tasks", self.tasks, 2, _MOST_TASKS)


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


def tune(
    source: str,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path,
    searches: Sequence[str] = (),
    options: TuningOptions | None = None,
    trust: Collection[str] = (),
    say: Say = silent,
) -> "SharedStudy":
    """Run trials until as many as wanted have ended, and write best.yaml, trials.csv and history.png.

    The value of a trial is the mean held-out return on the tuning tasks, over its trainings. A second call
    goes on with the study: no trial that ended is lost, and none is run again. Trials that a kill cut short
    are tried again. Several calls may work on one study at a time, on several machines.

    Args:
        source: the experiment, as for ``train``.
        overrides: of all trials; each training has one thread, whatever they say.
        run_dir: the folder for the results; new or that of the study.
        searches: what to vary; see ``read_space``.
        options: how.
        trust: modules that a config from elsewhere may import.
        say: called with one line of text after each trial.

    Raises:
        UserError: for options or a search space with faults, another study of the same name, and without
            Optuna.
    """
    options = options or TuningOptions()
    plan = _planned(source, overrides, run_dir, searches, options, trust)
    shared = _study(plan)
    _tell_of(shared, plan, say)
    try:
        jobs = min(options.n_jobs, max(1, options.n_trials - len(shared.ended())))
        side_by_side(work, [(plan,)] * jobs, jobs, say)
    finally:
        _report(shared, plan, run_dir)
    if not shared.completed():
        raise UserError("expected a trial with a value, got none; the lines above say why; search elsewhere")
    return shared


def _planned(
    source: str,
    overrides: Sequence[str],
    run_dir: Path,
    searches: Sequence[str],
    options: TuningOptions,
    trust: Collection[str],
) -> Plan:
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"--run-dir: expected a folder, or none yet, got the file {run_dir}")
    config = read_config(source, overrides, trust)
    space = read_space(searches, config)
    refuse_misfits(space, source, overrides, config)
    storage = (options.storage or run_dir / "study.log").absolute()
    return Plan(source, list(overrides), space, options, storage, frozenset(trust))


def _study(plan: Plan) -> "SharedStudy":
    from rl2meta.experiments.studies import SharedStudy

    rehearse(config := plan.config("threads=1"), resolve_device(config.settings.device))
    return SharedStudy(plan.study_settings())


def _tell_of(shared: "SharedStudy", plan: Plan, say: Say) -> None:
    ended, wanted = len(shared.ended()), plan.options.n_trials
    begun = f", which has {ended} of {wanted} trials" if ended else ""
    say(f"study {plan.options.study_name!r} in {plan.storage}{begun}")
    for key, dimension in plan.space.items():
        say(f"  {key}: {dimension}")


def _report(shared: "SharedStudy", plan: Plan, run_dir: Path) -> None:
    from rl2meta.experiments.study_report import write_report

    if shared.completed():
        write_report(shared, plan, run_dir)


def work(plan: Plan, say: Say) -> None:
    """Take trials of a study and run them until none is left to take; one of perhaps many processes.

    Raises:
        UserError: if the environments fail; the trial is then tried again by the next call.
    """
    from rl2meta.experiments.studies import SharedStudy, chosen

    shared, config = SharedStudy(plan.study_settings()), plan.config("threads=1")
    worker = make_worker(config, resolve_device(config.settings.device))
    seed = derive(config.settings.seed, "tuning", "tasks")
    judge = Contest(config, worker, seed, plan.options.tasks)
    try:
        with shared.attendance.attending() as name:
            while not is_orphan() and (trial := shared.claim(name)) is not None:
                settings = chosen(plan.space, trial.params)
                outcome = TrialRun(plan, judge, trial, settings).run()
                if outcome is None:  # this process is to end
                    return
                shared.tell(trial, outcome.value)
                say(_line(shared, trial.number, outcome, settings))
    finally:
        worker.close()


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        value: the mean held-out return over the trainings; None if the trial was pruned.
        said: why it has no value.
    """

    value: float | None
    said: str = ""


class TrialRun:
    """The trainings of a trial, one after the other.

    Optuna is told of the held-out return at several points of the first training, and of the mean over the
    trainings so far after each of the others; it may prune the trial there.

    Args:
        plan: of the study.
        judge: the tuning tasks.
        trial: Optuna's.
        settings: what the trial chose, by dotted key.
    """

    def __init__(self, plan: Plan, judge: Contest, trial: Any, settings: dict[str, Any]) -> None:
        self._plan, self._judge, self._trial = plan, judge, trial
        self._overrides = [*plan.overrides, *settings_text(settings), "threads=1"]
        self._values: list[float] = []  # of the trainings that are finished
        self._steps, self._stopped = 0, False
        self._ended: Outcome | None = None

    def run(self) -> Outcome | None:
        """Train with each seed and return how the trial ended; None if this process is to end.

        Raises:
            UserError: if the environments fail.
        """
        for number in range(self._plan.options.num_seeds):
            try:
                self._train(number)
            except UserError as error:
                return _without_value(error)
            if self._stopped or self._ended:
                return self._ended
        return Outcome(self._mean())

    def _mean(self) -> float:
        return math.fsum(self._values) / len(self._values)

    def _train(self, number: int) -> None:
        seed = derive(self._plan.config().settings.seed, "tuning", "training", number)
        overrides = [*self._overrides, f"seed={seed}"]
        updates = self._plan.config(*self._overrides).settings.training.updates
        points = self._plan.options.n_evaluations
        early = {round(updates * point / points) for point in range(1, points)} if number == 0 else set()

        def after_update(run: Run, row: dict[str, Any]) -> bool:
            self._stopped = is_orphan()
            if not self._stopped and row["update"] in early | {updates}:
                self._look(run, row["update"] == updates)
            return not self._stopped and self._ended is None

        train(self._plan.source, overrides, callbacks=[after_update], trust=self._plan.trust)

    def _look(self, run: Run, at_end: bool) -> None:
        """Judge the agent in training, tell Optuna, and note whether the trial ends here."""
        value = float(self._judge.evaluate(run.agent).returns().mean())
        if not math.isfinite(value):
            self._ended = Outcome(None, "its held-out return is not finite")
            return
        if at_end:
            self._values.append(value)
            value = self._mean()
        self._steps += 1
        self._trial.report(value, self._steps)
        last = len(self._values) == self._plan.options.num_seeds
        if not last and self._trial.should_prune():
            self._ended = Outcome(None, f"pruned at {value:.4g}")


def _without_value(error: UserError) -> Outcome:
    """Return the outcome of a training that these settings do not allow.

    Raises:
        UserError: if the environments are at fault.
    """
    if isinstance(error, EnvironmentFault) or isinstance(error.__context__, EnvironmentFault):
        raise error
    diverged = isinstance(error.__context__, TrainingDiverged)
    return Outcome(None, "diverged" if diverged else f"cannot be trained: {error!s:.200}")


def _line(shared: "SharedStudy", number: int, outcome: Outcome, settings: dict[str, Any]) -> str:
    names = short_keys(list(settings))
    said = f"{outcome.value:.4g}" if outcome.value is not None else outcome.said
    best = "".join(f", best {trial.value:.4g}" for trial in shared.completed()[:1])
    chosen = "  ".join(f"{names[key]}={in_short(value)}" for key, value in settings.items())
    return f"trial {number} ({len(shared.ended())}/{shared.settings.n_trials}): {said}{best}  {chosen}"


def in_short(value: Any) -> str:
    """Return a setting's value in few letters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
