"""A process that trains runs of a group, one slice after another; see ``rl2meta.experiments.jobs``.

It gets ``Slice``s and sends messages. It stops after an update, and saves, when it is asked to, or when the
process that started it is gone.
"""

import logging
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, NamedTuple

from rl2meta.errors import UserError
from rl2meta.experiments.members import Member, train_member
from rl2meta.experiments.run import Run
from rl2meta.memory import keep_memory

_PAUSE = 0.2  # seconds between two rows that are sent


class Slice(NamedTuple):
    """A part of the training of a member: up to an update, or to its end."""

    member: Member
    until: int | None


class Begun(NamedTuple):
    """A slice begins: the run has done so many of its updates."""

    update: int
    updates: int


class Row(NamedTuple):
    """The metrics of an update; not every update is reported."""

    row: Mapping[str, Any]


class Warned(NamedTuple):
    """A line of the log."""

    level: int
    text: str


class Ended(NamedTuple):
    """A slice ended after so many updates of the run, or with a fault."""

    update: int = 0
    finished: bool = False
    fault: str = ""


class _Job:
    def __init__(self, connection: Connection) -> None:
        self._connection, self._next_row = connection, 0.0
        self.stopping = False

    def begin(self, run: Run) -> None:
        self.send(Begun(run.update, run.config.settings.training.updates))

    def after_update(self, run: Run, row: dict[str, Any]) -> bool:
        if time.monotonic() >= self._next_row or run.finished:
            self._next_row = time.monotonic() + _PAUSE
            self.send(Row(row))
        self.stopping = self.stopping or self._connection.poll()  # a word to stop, or the end of the parent
        return not self.stopping

    def train(self, part: Slice) -> None:
        try:
            run = train_member(part.member, [self.after_update], self.begin, part.until)
            ended = Ended(run.update, run.finished)
        except UserError as error:
            ended = Ended(fault=str(error))
        except Exception:
            ended = Ended(fault=traceback.format_exc())
        self.send(ended)

    def send(self, message: Begun | Row | Warned | Ended) -> None:
        try:
            self._connection.send(message)
        except OSError:
            self.stopping = True


class _ToParent(logging.Handler):
    def __init__(self, job: _Job) -> None:
        super().__init__(logging.WARNING)
        self._job = job

    def emit(self, record: logging.LogRecord) -> None:
        self._job.send(Warned(record.levelno, record.getMessage()))


def main() -> None:
    """Train the slices that come through the connection with the descriptor ``sys.argv[-1]``."""
    keep_memory()
    connection = Connection(int(sys.argv[-1]))
    job = _Job(connection)

    def stop(number: int, frame: FrameType | None) -> None:
        job.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which asks to stop
    if hasattr(signal, "pthread_sigmask"):  # they were held back until now
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    logging.getLogger("rl2meta").addHandler(_ToParent(job))
    logging.getLogger("rl2meta").propagate = False
    while not job.stopping:
        try:
            part = connection.recv()
        except (EOFError, OSError):
            return
        if part is None:
            return
        job.train(part)
