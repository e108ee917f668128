"""Commands of rl2meta in forked children: a start costs milliseconds, not the import of torch."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rl2meta import cli

Prepare = Callable[[], object]
"""Called in the child before the command."""

LONGEST = 120.0  # seconds; a command of a probe that takes longer is stuck
TO_GO = 10.0  # seconds in which the processes of an ended command must be gone


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: the exit code; None if a signal ended it.
        said: what it printed, both outputs together.
        stuck: whether it had to be killed after ``LONGEST`` seconds.
        left: the processes of its session that did not go away.
    """

    code: int | None
    said: str
    stuck: bool
    left: list[int]

    @property
    def crashed(self) -> bool:
        """Whether it printed a traceback, or ended otherwise than a command may."""
        return "Traceback" in self.said or (self.code is not None and self.code not in (0, 2, 130, 143, 129))


class Child:
    """A command that runs in a session of its own."""

    def __init__(self, words: Sequence[object], folder: Path, prepare: Prepare | None = None) -> None:
        self.log = folder / "said"
        self.pid = os.fork()
        if not self.pid:
            _become([str(word) for word in words], folder, self.log, prepare)

    def kill(self, number: int) -> None:
        """Send a signal, if the process is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self) -> Ended:
        """Wait for the end, and for the end of everything that it started."""
        begun, stuck = time.monotonic(), False
        while (done := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() - begun > LONGEST and not stuck:
                stuck = True
                self.kill(signal.SIGKILL)
            time.sleep(0.002)
        code = os.WEXITSTATUS(done[1]) if os.WIFEXITED(done[1]) else None
        begun = time.monotonic()
        while (left := _session(self.pid)) and time.monotonic() - begun < TO_GO:
            time.sleep(0.01)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return Ended(code, self.log.read_text(errors="replace"), stuck, left)


def command(words: Sequence[object], folder: Path, prepare: Prepare | None = None) -> Ended:
    """Run a command to its end."""
    return Child(words, folder, prepare).end()


def _become(words: Sequence[str], folder: Path, log: Path, prepare: Prepare | None) -> None:
    """Turn the forked child into the command; never returns."""
    code = 70
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if prepare is not None:
            prepare()
        code = _main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _main(words: Sequence[str]) -> int:
    sys.argv = ["rl2meta", *words]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _session(leader: int) -> list[int]:
    """Return the living processes of a session (Linux)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found
