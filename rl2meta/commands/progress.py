"""The progress displays of training and evaluation: a live bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

SECONDS_BETWEEN_LINES = 5.0
_SHORTEST_BAR = 10  # characters


def say(line: str) -> None:
    """Print a line; if the output is closed or full, do nothing: training must go on."""
    with suppress(OSError):
        print(line, flush=True)


class _Display:
    """A bar if standard output is a terminal; it is there inside a ``with`` block.

    Args:
        left: the columns before the bar.
        right: the columns after it.
        console: where the bar is; None for standard output if it is a terminal.
    """

    def __init__(
        self, left: list[ProgressColumn], right: list[ProgressColumn], console: Console | None
    ) -> None:
        self._began = time.monotonic()
        self._next_line = 0.0
        live = console is not None or (sys.stdout is not None and sys.stdout.isatty())
        self._bar = _bar(left, right, console) if live else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _say_now_and_then(self, line: str, last: bool) -> None:
        """Print a line if enough time has passed since the one before, or it is the last."""
        if time.monotonic() >= self._next_line or last:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            say(line)

    def _time_left(self, done: int, to_do: int) -> str:
        """Return the time that ``to_do`` pieces of work take if they take as long as those done."""
        seconds_each = (time.monotonic() - self._began) / max(1, done)
        minutes, seconds = divmod(round(seconds_each * to_do), 60)
        return f"{minutes}:{seconds:02d}"


class TrainingProgress(_Display):
    """Shows the number of updates done, steps, steps/s, mean return and time left.

    Args:
        updates: number of updates of the whole run.
        done: number of updates done before this process began.
        console: where the bar is; None for standard output if it is a terminal.
    """

    def __init__(self, updates: int, done: int, console: Console | None = None) -> None:
        facts = TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        super().__init__([TextColumn("update"), MofNCompleteColumn()], [facts], console)
        self._updates, self._done = updates, done
        if self._bar is not None:
            self._task = self._bar.add_task("training", total=updates, completed=done, facts="")

    def show(self, row: Mapping[str, Any]) -> None:
        """Show the metrics of one update."""
        with suppress(OSError):
            self._show(row)

    def _show(self, row: Mapping[str, Any]) -> None:
        steps, rate, update = row["env_steps"], row["env_steps_per_second"], row["update"]
        gain = f"{row['mean_return']:.3f}"
        if self._bar is not None:
            facts = f"{_brief(steps)} steps {_brief(rate)}/s return {gain}"
            self._bar.update(self._task, completed=update, facts=facts)
            return
        left = self._time_left(update - self._done, self._updates - update)
        facts = f"{steps:,} steps  {rate:,.0f} steps/s  mean return {gain}"
        line = f"update {update}/{self._updates}  {facts}  {left} left"
        self._say_now_and_then(line, update == self._updates)


class TrialProgress(_Display):
    """Shows how many trials of an evaluation are done, and the time left.

    Args:
        console: where the bar is; None for standard output if it is a terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        share = TaskProgressColumn(show_speed=False)
        super().__init__([TextColumn("trials")], [share], console)
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES  # a short evaluation needs none
        if self._bar is not None:
            self._task = self._bar.add_task("trials", total=None)

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is None:
            say(line)
        else:
            self._bar.console.print(line, markup=False, highlight=False)

    def watch(self, done: int, total: int) -> None:
        """Show the number of trials done, and of all."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        else:
            left = self._time_left(done, total - done)
            self._say_now_and_then(f"  {done:,}/{total:,} trials  {left} left", last=False)


def _bar(left: list[ProgressColumn], right: list[ProgressColumn], console: Console | None) -> Progress:
    """Return a bar that keeps its shortest length, whatever the width of the console."""
    bar = BarColumn(bar_width=None, table_column=Column(min_width=_SHORTEST_BAR, ratio=1))
    return Progress(*left, bar, *right, TimeRemainingColumn(), console=console, expand=True)


def _brief(number: float) -> str:
    """Return a number in at most five characters, such as 950, 1.9k or 60.0M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"
