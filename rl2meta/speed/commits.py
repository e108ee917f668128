"""Two commits in turns: is this checkout slower than another commit, beyond the noise of the machine?

Each commit runs in processes of its own (``commit_side``). In every turn each side does the same work for the
same time, and the ratio of a turn is that of two neighbours in time. What a process is lucky or unlucky with
for all its life, such as where its memory lies, must not decide: both are replaced every few turns.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from rl2meta.errors import UserError
from rl2meta.speed import commit_side
from rl2meta.speed.checkouts import OPTION
from rl2meta.speed.report import circumstances
from rl2meta.statistics import fewest_for_median, median_interval

GUARDED: Mapping[str, Sequence[str]] = {
    "train": ("rl2meta", "n=100, 512 trials", "LSTM 256"),
    "rollout": ("rl2meta", "n=100, 512 trials"),
    "maml": ("rl2meta",),
}
"""The workloads of a suite that are compared; of other suites, all of ours."""
TURNS, LIFE, SIDES = 15, 5, ("here", "there")
CONFIDENCE = 0.95  # that all intervals of a report cover together


class Plan(NamedTuple):
    """What is compared, and how.

    Attributes:
        suites: by name, the sizes that replace the suite's own; see ``commit_side.units``.
        device, threads, precision: as the options of ``rl2meta benchmark``.
        seconds: how long each workload is measured on each side, in all its turns together.
        turns: how many turns each workload has.
        life: after how many turns both processes are replaced.
        workloads: by suite, what is compared of it; all of its own workloads where nothing is said.
    """

    suites: Mapping[str, Mapping[str, Any]]
    device: str
    threads: int
    precision: str = "float32"
    seconds: float = 30.0
    turns: int = TURNS
    life: int = LIFE
    workloads: Mapping[str, Sequence[str]] = GUARDED

    @property
    def clock(self) -> str:
        """What seconds are counted: of the CPU, which neighbours disturb less, if one thread does all."""
        return "cpu" if self.device == "cpu" and self.threads == 1 else "wall"


Row = tuple[str, str]
"""The names of a suite and of a workload of it."""


class Side:
    """A process that does the work of a checkout.

    Args:
        folder: of the checkout.
        plan: what it is to do.

    Raises:
        UserError: if the commit cannot do it; with the last line that it said.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        keys = ("suites", "device", "threads", "precision")
        options = json.dumps({key: getattr(plan, key) for key in keys})
        self._folder, self._errors = folder, tempfile.TemporaryFile("w+")  # noqa: SIM115  (of the process, until it ends)
        self._process = subprocess.Popen(
            [sys.executable, "-P", commit_side.__file__, options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONPATH": str(folder)},
        )
        self.end = weakref.finalize(self, _end, self._process, self._errors)
        said = self._read()
        if not Path(said["file"]).resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{OPTION}: expected the rl2meta of {folder} to be imported, got {said['file']}; take "
                "away what comes before PYTHONPATH"
            )
        self.rows: list[Row] = [(suite, name) for suite, names in said["workloads"].items() for name in names]

    def do(self, row: Row, seconds: float) -> dict[str, float]:
        """Do whole units of a workload for so many seconds; see ``commit_side.timed``."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([*row, seconds]) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise UserError(self._failure()) from None
        done: dict[str, float] = self._read()
        return done

    def _read(self) -> Any:
        assert self._process.stdout is not None
        try:
            return json.loads(self._process.stdout.readline())
        except ValueError:
            raise UserError(self._failure()) from None

    def _failure(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines() or ["nothing"]
        return (
            f"{OPTION}: expected a commit whose rl2meta.speed can be measured with the packages that are "
            f"installed, got: {said[-1]:.200}; choose a later one, or other suites"
        )


def _end(process: subprocess.Popen[str], errors: IO[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, errors):
        if stream is not None:
            stream.close()


def compare(
    folders: Mapping[str, Path], plan: Plan, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Measure both checkouts in turns, and return what was found, a row for each workload that both have.

    Args:
        folders: the checkouts ``here`` and ``there``.
        plan: what is measured, and how.
        say: called after every turn, with a line about it.

    Returns:
        Rows with ``suite``; ``workload``; the environment steps per second of every turn, ``here`` and
        ``there``; and what ``judged`` says of the speed here over the speed there.

    Raises:
        UserError: if there are too few turns for an interval, a commit cannot do the work, or the two have no
            workload in common.
    """
    sides: dict[str, Side] = {}
    speeds: dict[Row, dict[str, list[float]]] = {}
    try:
        for turn in range(plan.turns):
            if turn % plan.life == 0:
                _replace(sides, folders, plan)
            rows = _common(sides, plan)
            _refuse_few(plan.turns, len(rows))
            for row in rows:
                found = speeds.setdefault(row, {side: [] for side in SIDES})
                for side in SIDES if turn % 2 else SIDES[::-1]:
                    done = sides[side].do(row, plan.seconds / plan.turns)
                    found[side].append(done["steps"] / done[plan.clock])
            say(f"turn {turn + 1} of {plan.turns}")
    finally:
        for each in sides.values():
            each.end()
    return [
        {"suite": suite, "workload": name, **each, **judged(each["here"], each["there"], _share(len(speeds)))}
        for (suite, name), each in speeds.items()
    ]


def guard_report(
    folders: Mapping[str, Path], commit: str, plan: Plan, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return what ``compare`` finds as ``rows``, with the circumstances of the measurement.

    These are those of every report, ``commit``, ``clock`` and ``turns``.
    """
    about = {"commit": commit, "clock": plan.clock, "precision": plan.precision, "turns": plan.turns}
    return {**circumstances(torch.device(plan.device)), **about, "rows": compare(folders, plan, say)}


def _replace(sides: dict[str, Side], folders: Mapping[str, Path], plan: Plan) -> None:
    for side in SIDES:
        if side in sides:
            sides[side].end()
        sides[side] = Side(folders[side], plan)


def _common(sides: Mapping[str, Side], plan: Plan) -> list[Row]:
    wanted = plan.workloads
    rows = [row for row in sides["here"].rows if row in sides["there"].rows]
    rows = [(suite, name) for suite, name in rows if name in wanted.get(suite, [name])]
    if not rows:
        raise UserError(f"{OPTION}: expected workloads that both commits have, got none; choose other suites")
    return rows


def _refuse_few(turns: int, rows: int) -> None:
    """Refuse so few turns that no interval of that confidence exists."""
    least = fewest_for_median(_share(rows))
    if turns < least:
        raise UserError(
            f"--turns: expected at least {least} for an interval around each of {rows} medians, got {turns}"
        )


def _share(rows: int) -> float:
    """Return the confidence of each of so many intervals that cover together (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / rows


def judged(here: Sequence[float], there: Sequence[float], confidence: float) -> dict[str, Any]:
    """Return the median of the ratios of speeds, turn by turn, with its interval, and what follows.

    Returns:
        ``ratios``; ``ratio``, their median; its interval, ``low`` and ``high``; and ``verdict``: "slower" if
        all of the interval is below 1, "faster" if all of it is above, else "no difference found".
    """
    ratios = [a / b for a, b in zip(here, there, strict=True)]
    ratio, low, high = median_interval(ratios, confidence)
    verdict = "slower" if high < 1 else "faster" if low > 1 else "no difference found"
    return {"ratios": ratios, "ratio": ratio, "low": low, "high": high, "verdict": verdict}


def comparison_table(rows: Sequence[Mapping[str, Any]], commit: str) -> list[str]:
    """Return what ``compare`` found as lines of text; the last lines say which rows are slower."""
    names = [f"{row['suite']}: {row['workload']}" for row in rows]
    width = max(map(len, names))
    head = f"{'':{width}}  {'steps/s here':>14}  {'at ' + commit:>14}  ratio (95 % for all rows together)"
    lines = [f"{name:{width}}  {_figures(row)}" for name, row in zip(names, rows, strict=True)]
    slower = [name for name, row in zip(names, rows, strict=True) if row["verdict"] == "slower"]
    verdicts = [f"slower than {commit}: {name}" for name in slower]
    return [head, *lines, *(verdicts or [f"no row is found to be slower than {commit}"])]


def _figures(row: Mapping[str, Any]) -> str:
    here, there = (f"{statistics.median(row[side]):,.0f}" for side in SIDES)
    ratio = f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    return f"{here:>14}  {there:>14}  {ratio}  {row['verdict']}"
