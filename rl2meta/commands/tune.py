"""``rl2meta tune``: a study of an experiment's settings, and what it found."""

from collections.abc import Sequence
from pathlib import Path

from rl2meta.commands.progress import say
from rl2meta.commands.signals import Interrupted
from rl2meta.experiments.trainings import quoted
from rl2meta.experiments.tuning import tune
from rl2meta.experiments.tuning_plan import TuningOptions


def run_study(
    source: str,
    overrides: Sequence[str],
    *,
    run_dir: Path,
    searches: Sequence[str],
    options: TuningOptions,
    trust: Sequence[str],
) -> None:
    """Run the trials of a study that are missing, and print the best of all."""
    try:
        shared = tune(
            source, overrides, run_dir=run_dir, searches=searches, options=options, trust=trust, say=say
        )
    except Interrupted:
        say("stopped; the same command goes on with the study")
        raise
    from rl2meta.experiments.study_report import best_trials, importance

    say(f"\n{best_trials(shared)}")
    if shares := importance(shared):
        say("\nimportance of the settings, which together have 1:")
        for key, share in shares.items():
            say(f"  {share:.2f}  {key}")
    say(f"\nwrote best.yaml, trials.csv and history.png in {run_dir}; train with the best settings by:")
    say(f"  rl2meta train {quoted(run_dir / 'best.yaml')} --run-dir runs/tuned")
