"""``rl2meta train --seeds``: what a person sees of the trainings of a group."""

import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rl2meta.commands.progress import SECONDS_BETWEEN_LINES, say
from rl2meta.commands.signals import Interrupted, handled
from rl2meta.devices import cores
from rl2meta.errors import UserError
from rl2meta.experiments.group_folder import members
from rl2meta.experiments.groups import Group, resume_group, train_group
from rl2meta.experiments.trainings import quoted


class GroupProgress:
    """Shows how far each training of a group is, and stops all when a signal asks."""

    def __init__(self, title: str) -> None:
        self._title = title  # said once the first training begins, after all checks
        self._newest: tuple[int, Mapping[str, Any]] | None = None  # a seed and its row
        self.interrupted: Interrupted | None = None
        self._done: dict[int, tuple[int, int]] = {}  # seed -> updates done, and of how many
        self._next_line = 0.0
        self._bar = _bar() if sys.stdout is not None and sys.stdout.isatty() else None
        self._tasks: dict[int, TaskID] = {}

    @property
    def stopping(self) -> bool:
        """Whether a signal asked to stop."""
        return self.interrupted is not None

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Stop after the present updates; a second signal ends everything at once."""
        if self.interrupted is not None:
            raise self.interrupted
        self.interrupted = Interrupted(number)
        say("stopping: every training saves and ends after its present update ...")

    def begun(self, seed: int, update: int, updates: int) -> None:
        """Show that a training begins, or goes on."""
        if not self._done:
            say(self._title)
        self._done[seed] = update, updates
        with suppress(OSError):
            if self._bar is not None:
                self._bar.start()
                if seed not in self._tasks:
                    self._tasks[seed] = self._bar.add_task(f"seed {seed}", total=updates, facts="")
                self._bar.update(self._tasks[seed], completed=update)

    def after_update(self, seed: int, row: Mapping[str, Any]) -> None:
        """Show an update."""
        updates = self._done[seed][1]
        self._done[seed] = row["update"], updates
        self._newest = seed, row
        with suppress(OSError):
            if self._bar is not None:
                facts = f"return {row['mean_return']:.3f}"
                self._bar.update(self._tasks[seed], completed=row["update"], facts=facts)
            elif time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
                self._line(seed, row)

    def close(self) -> None:
        """Take the bars away; without a terminal, say how far all came."""
        if self._bar is not None:
            self._bar.stop()
        elif self._newest is not None:
            self._line(*self._newest)

    def _line(self, seed: int, row: Mapping[str, Any]) -> None:
        far = "  ".join(f"{each}: {done}" for each, (done, _) in sorted(self._done.items()))
        updates = self._done[seed][1]
        say(f"updates of {updates} by seed  {far}  mean return of seed {seed}: {row['mean_return']:.3f}")


def start_or_resume(
    source: str | None,
    overrides: Sequence[str],
    seeds: str | None,
    run_dir: Path,
    jobs: int | None,
    start_from: Path | None,
    resume: bool,
    trust: Collection[str],
) -> int:
    """Train a group, or continue the one in ``run_dir``; return the exit code."""
    if not resume and source is not None and seeds is not None:
        return start_group(source, overrides, seeds_of(seeds), run_dir, jobs, start_from, trust)
    if not resume:
        raise UserError("CONFIG: expected a YAML file or a shipped config's name; see 'rl2meta list'")
    if seeds is not None or source is not None or start_from is not None:
        raise UserError(
            "--resume: expected a group's folder alone, got settings beside it; leave them out, or leave out "
            "--resume to continue the group and check that the settings are the same"
        )
    return _resume(run_dir, jobs, trust)


def start_group(
    source: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    run_dir: Path,
    jobs: int | None,
    start_from: Path | None,
    trust: Collection[str] = (),
) -> int:
    """Train the experiment called ``source`` with several seeds, or go on with it; return the exit code."""

    def go(progress: GroupProgress, at_a_time: int) -> Group:
        return train_group(
            source,
            overrides,
            seeds=seeds,
            run_dir=run_dir,
            jobs=at_a_time,
            start_from=start_from,
            trust=trust,
            watch=progress,
        )

    return _shown(go, f"training {source} with {_seeds(len(seeds))} in {run_dir}", len(seeds), run_dir, jobs)


def _resume(run_dir: Path, jobs: int | None, trust: Collection[str]) -> int:
    """Continue the group in ``run_dir``; return the exit code."""
    count = len(members(run_dir))

    def go(progress: GroupProgress, at_a_time: int) -> Group:
        return resume_group(run_dir, jobs=at_a_time, trust=trust, watch=progress)

    return _shown(go, f"continuing {run_dir} with {_seeds(count)}", count, run_dir, jobs)


def seeds_of(text: str) -> list[int]:
    """Return the seeds that ``0-4``, ``0,3,7`` or ``0-2,7`` means.

    Raises:
        UserError: for another text.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = first, last if dash else first
        if not all(end.strip().isdecimal() for end in ends) or len(text) > 10_000:
            raise UserError(f"--seeds: expected seeds such as 0-4 or 0,3,7, got {text!r:.100}")
        low, high = map(int, ends)
        if high < low or high - low >= 10_000:
            raise UserError(
                f"--seeds: expected a range from low to high, of at most 10,000 seeds, got "
                f"{part.strip()!r:.100}; swap the ends, or give fewer seeds"
            )
        seeds += range(low, high + 1)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: expected different seeds, got one twice in {text!r:.100}")
    return seeds


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _shown(go: Any, title: str, count: int, run_dir: Path, jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: expected at least 1, got {jobs}")
    at_a_time = min(count, jobs or cores())
    progress = GroupProgress(f"{title}, {at_a_time} at a time")
    try:
        with handled(progress.request_stop):
            group: Group = go(progress, at_a_time)
    finally:
        progress.close()
    if progress.interrupted is not None and (len(group.runs) < count or not group.finished):
        say("stopped and saved; continue with:")
        say(f"  rl2meta train --resume --run-dir {quoted(run_dir)}")
        return progress.interrupted.exit_code
    say(f"trained {_seeds(count)}; judge {'it' if count == 1 else 'them'} with:")
    say(f"  rl2meta evaluate {quoted(run_dir)}")
    return 0


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
