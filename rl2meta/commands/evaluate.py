"""``rl2meta evaluate`` and ``rl2meta compare``: what a person sees of an evaluation."""

from rl2meta.commands.progress import TrialProgress
from rl2meta.experiments.evaluations import Evaluation, compare, evaluate


def evaluate_run(*arguments: object, iqm: bool = False, profile: bool = False, **options: object) -> None:
    """Evaluate the newest checkpoint of a run or group; print the tables and where the files are."""
    with TrialProgress() as progress:
        evaluation = evaluate(*arguments, say=progress.say, watch=progress.watch, **options)  # type: ignore[arg-type]
    _show(evaluation, iqm, profile)


def compare_runs(*arguments: object, iqm: bool = False, profile: bool = False, **options: object) -> None:
    """Evaluate the newest checkpoints of several runs side by side; print tables and where the files are."""
    with TrialProgress() as progress:
        evaluation = compare(*arguments, say=progress.say, watch=progress.watch, **options)  # type: ignore[arg-type]
    _show(evaluation, iqm, profile)


def _show(evaluation: Evaluation, iqm: bool, profile: bool) -> None:
    print(evaluation.table(iqm))
    assert evaluation.path is not None  # of runs in folders
    if profile:
        evaluation.figure("profile")
    figures = ", ".join(sorted((path.name for path in evaluation.path.glob("*.png")), reverse=True))
    print(f"wrote {evaluation.path} (figures: {figures})")
