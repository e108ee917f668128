"""Train the runs of a group side by side, in processes that take turns with the runs.

Runs are resumable to the bit, so a run may move from one process to another. With five runs and two processes
each run is cut into two slices: then both processes end at the same time, and not one a whole run later.
"""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from rl2meta.experiments.job import Begun, Ended, Row, Slice, Warned
from rl2meta.experiments.members import Member
from rl2meta.experiments.side_by_side import held_back
from rl2meta.workers.process import signal_name

_GLANCE = 0.2  # seconds between two looks at whether somebody asked to stop
_DYING = 10.0  # seconds that a process may take to end after its connection has closed
# Nothing is imported before sys.path is set: Python puts the current folder first, whatever files it holds.
_START = "import sys; sys.path[:] = eval(sys.argv[1]); from rl2meta.experiments.job import main; main()"
_log = logging.getLogger("rl2meta")


class Watch(Protocol):
    """Is told how the trainings of a group go, and may stop them."""

    def begun(self, seed: int, update: int, updates: int) -> None:
        """A run begins or goes on after ``update`` of its ``updates``."""
        ...

    def after_update(self, seed: int, row: Mapping[str, Any]) -> None:
        """A run has made an update; not every update is reported."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether all trainings are to save and stop."""
        ...


@dataclass
class _Turn:
    """A member that waits for its next slice."""

    member: Member
    taken: int = 0  # slices


@dataclass
class _Worker:
    """A process, and what it is training."""

    process: subprocess.Popen[bytes]
    connection: Connection
    turn: _Turn | None = None
    asked: bool = field(default=False)


def train_side_by_side(members: Sequence[Member], jobs: int, updates: int, watch: Watch) -> dict[int, str]:
    """Train runs in ``jobs`` processes; return the faults by seed.

    Args:
        members: the runs, with folders; their settings fix the number of threads of each.
        jobs: the number of processes; it changes no result.
        updates: of every run.
        watch: is told how it goes.
    """
    crew = _Crew(members, min(jobs, len(members)), updates, watch)
    try:
        return crew.run()
    finally:
        crew.kill()


def number_of_slices(members: int, jobs: int) -> int:
    """Return in how many slices each run is trained, so that all processes are busy until the end.

    k = N / gcd(S, N) for S runs and N < S processes: then S · k slices divide into N equal shares.
    """
    return 1 if members <= jobs else jobs // math.gcd(members, jobs)


class _Crew:
    def __init__(self, members: Sequence[Member], jobs: int, updates: int, watch: Watch) -> None:
        self._waiting = [_Turn(member) for member in members]
        self._slices = number_of_slices(len(members), jobs)
        self._jobs, self._updates, self._watch = jobs, updates, watch
        self._workers: list[_Worker] = []
        self._faults: dict[int, str] = {}

    def run(self) -> dict[int, str]:
        while self._busy() or (self._waiting and not self._watch.stopping):
            self._stop_if_asked()
            self._give_turns()
            for worker in self._ready():
                self._hear(worker)
        return self._faults

    def kill(self) -> None:
        """End processes that are left; those without work end by themselves when their connection closes."""
        for worker in self._workers:
            worker.connection.close()
            if worker.turn is not None:
                worker.process.kill()
            _ended(worker.process)

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.turn is not None]

    def _ready(self) -> list[_Worker]:
        by_connection = {worker.connection: worker for worker in self._busy()}
        return [by_connection[each] for each in wait(list(by_connection), _GLANCE)]  # type: ignore[index]

    def _stop_if_asked(self) -> None:
        if self._watch.stopping:
            for worker in self._busy():
                if not worker.asked:
                    worker.asked = True
                    with suppress(OSError):
                        worker.connection.send(None)

    def _give_turns(self) -> None:
        while self._waiting and len(self._busy()) < self._jobs and not self._watch.stopping:
            turn = min(self._waiting, key=lambda each: each.taken)  # the one that is furthest behind
            self._waiting.remove(turn)
            turn.taken += 1
            last = turn.taken >= self._slices
            until = None if last else math.ceil(self._updates * turn.taken / self._slices)
            with suppress(OSError):  # a process that is gone is heard of as one that ended
                self._free_worker(turn).connection.send(Slice(turn.member, until))

    def _free_worker(self, turn: _Turn) -> _Worker:
        worker = next((each for each in self._workers if each.turn is None), None)
        if worker is None:
            worker = _Worker(*_start())
            self._workers.append(worker)
        worker.turn = turn
        return worker

    def _hear(self, worker: _Worker) -> None:
        assert worker.turn is not None  # it is busy
        seed = worker.turn.member.seed
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return self._bury(worker, seed)
        match message:
            case Begun():
                self._watch.begun(seed, *message)
            case Row(row):
                self._watch.after_update(seed, row)
            case Warned(level, text):
                _log.log(level, "seed %d: %s", seed, text)
            case Ended():
                self._end(worker, seed, message)
        return None

    def _end(self, worker: _Worker, seed: int, ended: Ended) -> None:
        turn, worker.turn = worker.turn, None
        assert turn is not None
        if ended.fault:
            self._faults[seed] = ended.fault
        elif not ended.finished and not worker.asked:
            self._waiting.append(turn)
        if worker.asked:  # it ends, too
            self._workers.remove(worker)
            worker.connection.close()
            _ended(worker.process)

    def _bury(self, worker: _Worker, seed: int) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        code = _ended(worker.process)
        if self._watch.stopping and code == 0:  # it was asked before it began
            return
        how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        self._faults[seed] = f"its process {how}"


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process whose connection is closed, or end it; return its exit code."""
    try:
        return process.wait(_DYING)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    """Return a new process and our end of the connection to it.

    It is a new interpreter: a fork after torch has started its threads may hang. The main module is not run
    again, for it may have no ``if __name__ == "__main__"``.
    """
    path = ascii([entry for entry in sys.path if isinstance(entry, str)])
    ours, theirs = socket.socketpair()
    with theirs, held_back(signal.SIGINT, signal.SIGTERM):  # until it can act on them
        process = subprocess.Popen(
            [sys.executable, "-c", _START, path, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=dict(os.environ),
        )
    return process, Connection(ours.detach())
