"""The progress display of training: a live bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


def say(line: str) -> None:
    """Print a line; if the output is closed or full, do nothing: training must go on."""
    with suppress(OSError):
        print(line, flush=True)


class TrainingProgress:
    """Shows the number of updates done, steps, steps/s, mean return and time left.

    Args:
        updates: number of updates of the whole run.
        done: number of updates done before this process began.
    """

    def __init__(self, updates: int, done: int) -> None:
        self._updates = updates
        self._done = done
        self._began = time.monotonic()
        self._next_line = 0.0
        self._bar = _bar() if sys.stdout is not None and sys.stdout.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task("training", total=updates, completed=done, facts="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, row: Mapping[str, Any]) -> None:
        """Show the metrics of one update."""
        with suppress(OSError):
            self._show(row)

    def _show(self, row: Mapping[str, Any]) -> None:
        facts = (
            f"{row['env_steps']:,} steps  {row['env_steps_per_second']:,.0f} steps/s  "
            f"mean return {row['mean_return']:.3f}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=row["update"], facts=facts)
        elif time.monotonic() >= self._next_line or row["update"] == self._updates:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            left = self._time_left(row["update"])
            say(f"update {row['update']}/{self._updates}  {facts}  {left} left")

    def _time_left(self, update: int) -> str:
        per_update = (time.monotonic() - self._began) / max(1, update - self._done)
        minutes, seconds = divmod(round(per_update * (self._updates - update)), 60)
        return f"{minutes}:{seconds:02d}"


def _bar() -> Progress:
    return Progress(
        TextColumn("update"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
