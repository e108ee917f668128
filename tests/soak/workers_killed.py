"""Worker processes that are killed while they start or take the first look at an environment."""

import contextlib
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from children import command
from experiments import differences, outcome, undisturbed, words_to_go_on, write_config
from kills import brief
from report import Row

_KIND = "RL² with workers"
_TRAINING = {"updates": 3}
_AGAIN = {"first look": "the first look at an environment starts again", "worker": "starts again (restart"}
"""What is said when a process of each kind was killed."""


def killed_workers(home: Path, number: int, chance: random.Random) -> Row:
    """Kill the process of the first look, or a worker in its first moments, until both were hit often."""
    row = Row(
        "the process of the first look at an environment, or a worker while it starts, is killed",
        "it is told and started again; the run ends with the undisturbed bits; no process is left",
    )
    right = outcome(undisturbed(_KIND, home, **_TRAINING))
    config, run = write_config(_KIND, home, **_TRAINING), home / "run"
    for name, said in _AGAIN.items():
        hits, tries = 0, 0
        while hits < number and (tries := tries + 1) <= 5 * number:
            shutil.rmtree(run, ignore_errors=True)
            which = 0 if name == "first look" else chance.choice((1, 2))
            after = chance.uniform(0, 0.5)
            ended = command(words_to_go_on(config, run), home, _killing(which, after))
            hits += said in ended.said
            other = differences(outcome(run), right) if ended.code == 0 else "not finished"
            where = f"{name}, process {which} after {after:.3f} s"
            row.check(not other and not ended.left, f"{where}: {other}; left {ended.left}: {brief(ended)}")
        row.counts[f"{name} started again"] = hits
        if hits < number:
            row.failures.append(f"{name}: expected {number} that were told, got {hits} in {tries} tries")
    return row


def _killing(which: int, seconds: float) -> Callable[[], None]:
    """Return what makes this process kill the ``which``-th process that it starts, after some seconds."""

    def prepare() -> None:
        from rl2meta.workers.process import WorkerProcess

        made, begin = [0], WorkerProcess.__init__

        def init(process: WorkerProcess, *given: Any) -> None:
            begin(process, *given)
            made[0] += 1
            if made[0] == which + 1:
                timer = threading.Timer(seconds, kill, [process])
                timer.daemon = True
                timer.start()

        def kill(process: WorkerProcess) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

        WorkerProcess.__init__ = init  # type: ignore[method-assign]

    return prepare
