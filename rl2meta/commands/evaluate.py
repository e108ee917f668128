"""``rl2meta evaluate`` and ``rl2meta compare``: what a person sees of an evaluation."""

from collections.abc import Callable

from rl2meta.commands.progress import TrialProgress
from rl2meta.experiments.evaluations import Evaluation, compare, evaluate
from rl2meta.ranks import joined


def evaluate_run(*arguments: object, iqm: bool = False, profile: bool = False, **options: object) -> None:
    """Evaluate the newest checkpoint of a run or group; print the tables and where the files are."""
    _show(evaluate, *arguments, iqm=iqm, profile=profile, **options)


def compare_runs(*arguments: object, iqm: bool = False, profile: bool = False, **options: object) -> None:
    """Evaluate the newest checkpoints of several runs side by side; print tables and where the files are."""
    _show(compare, *arguments, iqm=iqm, profile=profile, **options)


def _show(
    judge: Callable[..., Evaluation], *arguments: object, iqm: bool, profile: bool, **options: object
) -> None:
    """Evaluate, with all ranks that ``torchrun`` started; the leader prints."""
    with joined() as ranks:
        if not ranks.leads:
            judge(*arguments, ranks=ranks, **options)
            return
        with TrialProgress() as progress:
            evaluation = judge(*arguments, say=progress.say, watch=progress.watch, ranks=ranks, **options)
    print(evaluation.table(iqm))
    assert evaluation.path is not None  # of runs in folders
    if profile:
        evaluation.figure("profile")
    figures = ", ".join(sorted((path.name for path in evaluation.path.glob("*.png")), reverse=True))
    print(f"wrote {evaluation.path} (figures: {figures})")
