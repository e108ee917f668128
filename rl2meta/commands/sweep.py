"""``rl2meta sweep``: a plain grid of settings, and the table of its results."""

import re
from collections.abc import Sequence
from pathlib import Path

from rl2meta.commands.progress import say
from rl2meta.commands.signals import Interrupted
from rl2meta.errors import UserError
from rl2meta.experiments.sweeps import sweep, sweep_table
from rl2meta.experiments.text_tables import aligned


def run_sweep(
    source: str, words: Sequence[str], *, run_dir: Path, seeds: str | None, jobs: int, trust: Sequence[str]
) -> int:
    """Train and evaluate at each point, print the table, and return the exit code."""
    chosen = [] if seeds is None else numbers_of(seeds)
    try:
        rows, failed = sweep(source, words, run_dir=run_dir, seeds=chosen, jobs=jobs, trust=trust, say=say)
    except Interrupted:
        say("stopped; the same command goes on with the sweep")
        raise
    over = "training seeds" if len(chosen) > 1 else "tasks"
    say(f"\n{aligned(sweep_table(rows))}\n\nmean [95 % interval over {over}]")
    say(f"wrote {run_dir / 'sweep.json'}")
    if failed:
        say(f"\nruns that failed; the same command tries them again:\n{failed}")
    return 1 if failed else 0


def numbers_of(seeds: str) -> list[int]:
    """Return the seeds that a text such as ``0-2`` or ``0,3,7`` names, in order.

    Raises:
        UserError: for another text, and for a seed that is there twice.
    """
    parts = [re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part.strip()) for part in seeds.split(",")]
    chosen: list[int] = []
    for part in parts:
        if part is None or int(part[2] or part[1]) - int(part[1]) not in range(10_000):
            raise UserError(f"--seeds: expected seeds such as 0-2 or 0,3,7, got {seeds!r:.100}")
        chosen += range(int(part[1]), int(part[2] or part[1]) + 1)
    if len(set(chosen)) < len(chosen):
        raise UserError(f"--seeds: expected different seeds, got one twice in {seeds!r:.100}")
    return sorted(chosen)
