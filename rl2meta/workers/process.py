"""One worker process, as the main process sees it."""

import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import BinaryIO

from rl2meta.workers.block import Array
from rl2meta.workers.child import DONE, Probe, Setup
from rl2meta.workers.faults import CALLS, EnvironmentFault, Failed, Fault, is_own

START_LIMIT = 120.0  # seconds that starting and importing may take
_GLANCE = 0.2  # seconds between two checks that a worker makes progress
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from rl2meta.workers.child import main; main()"
)
_WRITING = 0.1  # seconds that writing a stack may take
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerProcess:
    """A process that steps environments, in its own session, so that one signal ends all that it started.

    It is a new interpreter and not a fork: a fork after torch has started its threads may hang. The main
    module is not run again: it may import torch, or have no ``if __name__ == "__main__"``.

    Args:
        told: the first message to the worker.
        memory: the descriptor of the shared memory.
        mark: the worker's row of ``Arrays.mark``.
        timeout: seconds that one call of an environment may take.
    """

    def __init__(self, told: Setup | Probe, memory: int, mark: Array, timeout: float) -> None:
        if os.name != "posix":
            raise EnvironmentFault("worker processes need Linux or macOS; set workers.processes=0")
        self._mark, self._timeout = mark, timeout
        mark[:] = 0, -1, CALLS.index("import"), 0
        self._process, self._connection, self._stack = _start(memory)
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        self.send(pickle.dumps(told))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: bytes) -> None:
        """Send a command; if the worker is dead, the wait for its answer reports it."""
        with suppress(OSError):
            self._connection.send_bytes(message)

    def started(self) -> None:
        """Wait until the worker is ready for commands.

        Raises:
            Failed: if the process or the import of the family failed.
        """
        self._answer(START_LIMIT)

    def done(self) -> None:
        """Wait until the worker has done its last command.

        Raises:
            Failed: if an environment raised, or the process died or hung.
        """
        self._answer(self._timeout)

    def result(self) -> bytes:
        """Return the next message of the worker.

        Raises:
            Failed: if the worker died before it sent one.
        """
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            raise Failed(self._fault(self._death())) from None

    def kill(self) -> None:
        """End the process and all processes that it started; a second call does nothing."""
        if self._connection.closed:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        self._stack.close()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _answer(self, limit: float) -> None:
        seen, since = self._mark.tolist(), time.monotonic()
        while not self._poll.poll(min(_GLANCE, limit) * 1000):
            now = self._mark.tolist()
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > limit:
                setting = " (workers.timeout)" if limit == self._timeout else ""
                words = f"did not return within {limit:g} s{setting}"
                raise Failed(self._fault(words, self._where()))
            if self._process.poll() is not None and not self._poll.poll(0):
                raise Failed(self._fault(self._death()))  # its forks may keep the connection open
        self._receive()

    def _where(self) -> str:
        """Return the frames in which a worker hangs, the innermost last, if it can still report them."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(_WRITING)
        self._stack.seek(0)
        lines = self._stack.read().decode(errors="replace").splitlines()
        frames = [line.strip() for line in lines if line.lstrip().startswith("File ") and not is_own(line)]
        return "".join(f"\n    {frame}" for frame in reversed(frames) if '"<' not in frame)

    def _receive(self) -> None:
        message = self.result()
        if message != DONE:
            raise Failed(pickle.loads(message))

    def _death(self) -> str:
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "the worker process closed its connection"
        if code < 0:
            return f"the worker process was killed by {signal.Signals(-code).name}"
        return f"the worker process ended with exit code {code}"

    def _fault(self, what: str, details: str = "") -> Fault:
        _, slot, call, step = (int(value) for value in self._mark)
        idle = CALLS[call] in ("nothing", "import")
        return Fault(what, CALLS[call], None if idle else slot, step, details)


def _start(memory: int) -> tuple[subprocess.Popen[bytes], Connection, BinaryIO]:
    """Return a new process, our end of the connection to it, and the file that it writes its stack to."""
    path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])  # imports ignore the others
    with ExitStack() as opened:  # closes everything if the process cannot be started
        stack = opened.enter_context(tempfile.TemporaryFile())
        ours, theirs = (opened.enter_context(end) for end in socket.socketpair())
        handed = theirs.fileno(), memory, stack.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", _START, path, *map(str, handed)],
            stdin=subprocess.PIPE,
            pass_fds=handed,
            start_new_session=True,
            env={**dict.fromkeys(_ONE_THREAD, "1"), **os.environ},
        )
        opened.pop_all()
    theirs.close()
    return process, Connection(ours.detach()), stack
