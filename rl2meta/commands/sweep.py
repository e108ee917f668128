"""``rl2meta sweep``: a plain grid of settings, and the table of its results."""

from collections.abc import Sequence
from pathlib import Path

from rl2meta.commands.progress import say
from rl2meta.commands.signals import Interrupted
from rl2meta.commands.train_group import seeds_of
from rl2meta.experiments.sweeps import sweep, sweep_table
from rl2meta.experiments.text_tables import aligned


def run_sweep(
    source: str, words: Sequence[str], *, run_dir: Path, seeds: str | None, jobs: int, trust: Sequence[str]
) -> int:
    """Train and evaluate at each point, print the table, and return the exit code."""
    chosen = [] if seeds is None else sorted(seeds_of(seeds))
    try:
        rows, failed = sweep(source, words, run_dir=run_dir, seeds=chosen, jobs=jobs, trust=trust, say=say)
    except Interrupted:
        say("stopped; the same command goes on with the sweep")
        raise
    over = "training seeds and tasks" if len(chosen) > 1 else "tasks"
    say(f"\n{aligned(sweep_table(rows))}\n\nmean [95 % interval over {over}]")
    say(f"wrote {run_dir / 'sweep.json'}")
    if failed:
        say(f"\nruns that failed; the same command tries them again:\n{failed}")
    return 1 if failed else 0
