"""Tune the settings of an experiment: train with many, and keep those whose agents earn most on tuning tasks.

Tuning tasks are held-out tasks with a seed of their own, so they are neither tasks of the training nor those
of the final evaluation; and the trainings of a study have seeds of their own. A *trial* is here what Optuna
calls so: one choice of the settings, and the trainings with it.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl2meta.devices import resolve_device
from rl2meta.errors import UserError
from rl2meta.experiments.components import make_worker, read_config
from rl2meta.experiments.contest import Contest
from rl2meta.experiments.group_folder import refuse_trained
from rl2meta.experiments.judging import Say, silent
from rl2meta.experiments.rehearsal import rehearse
from rl2meta.experiments.run_folder import LARGEST_CONFIG
from rl2meta.experiments.search_space import read_space, refuse_misfits
from rl2meta.experiments.side_by_side import is_orphan, side_by_side
from rl2meta.experiments.text_tables import short_keys
from rl2meta.experiments.tuning_plan import Plan, TuningOptions
from rl2meta.experiments.tuning_trial import Outcome, TrialRun
from rl2meta.files import read_text, reading
from rl2meta.randomness import derive

if TYPE_CHECKING:  # studies loads Optuna, which need not be there
    from rl2meta.experiments.studies import SharedStudy


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
    except BaseException:
        _report(shared, plan, run_dir, figure=False)  # which takes a while
        raise
    _report(shared, plan, run_dir)
    if not shared.completed():
        raise UserError("expected a trial with a value, got none; the lines above say why; search elsewhere")
    return shared


def _refuse_results_of_another(best: Path, study: str) -> None:
    """Refuse to write over the results of a study of another name."""
    if not best.exists():
        return
    with reading(best):
        first = read_text(best, LARGEST_CONFIG).partition("\n")[0]
    if f" of study {study}," not in first:
        raise UserError(
            f"--run-dir: expected a new folder or that of study {study}, got {best} with another's results; "
            "choose another"
        )


def _planned(
    source: str,
    overrides: Sequence[str],
    run_dir: Path,
    searches: Sequence[str],
    options: TuningOptions,
    trust: Collection[str],
) -> Plan:
    refuse_trained(run_dir)
    _refuse_results_of_another(run_dir / "best.yaml", options.study_name)
    config = read_config(source, overrides, trust)
    space = read_space(searches, config)
    refuse_misfits(space, source, overrides, config, trust)
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


def _report(shared: "SharedStudy", plan: Plan, run_dir: Path, figure: bool = True) -> None:
    from rl2meta.experiments.study_report import write_report

    if shared.completed():
        write_report(shared, plan, run_dir, figure)


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


def _line(shared: "SharedStudy", number: int, outcome: Outcome, settings: dict[str, Any]) -> str:
    names = short_keys(list(settings))
    said = f"{outcome.value:.4g}" if outcome.value is not None else outcome.said
    best = "".join(f", best {trial.value:.4g}" for trial in shared.completed()[:1])
    chosen = "  ".join(f"{names[key]}={in_short(value)}" for key, value in settings.items())
    return f"trial {number} ({len(shared.ended())}/{shared.settings.n_trials}): {said}{best}  {chosen}"


def in_short(value: Any) -> str:
    """Return a setting's value in few letters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
