"""One worker process, as the main process sees it."""

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection

from rl2meta.workers import guardian
from rl2meta.workers.block import Array, nameless_memory
from rl2meta.workers.child import DONE, Probe, Setup
from rl2meta.workers.faults import CALLS, EnvironmentFault, Failed, Fault, cut, is_own

START_LIMIT = 120.0  # seconds that starting and importing may take
_GLANCE = 0.2  # seconds between two checks that a worker makes progress
# Nothing is imported before sys.path is set: Python puts the current folder first, whatever files it holds.
_START = (
    "import sys; sys.path[:] = eval(sys.argv[1]); from rl2meta.workers.guardian import guarded; "
    "guarded([int(word) for word in sys.argv[2:]]); from rl2meta.workers.child import main; main()"
)
_ASKING = 0.5  # seconds after which a worker that has not begun to write its stack cannot do it
_WRITING = 0.1  # seconds that writing it may take
_LONGEST_STACK = 2**20  # bytes
_DYING = 5.0  # seconds that a process may take to end after its connection has closed
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerProcess:
    """A process that steps environments; ``kill`` ends it and all that it started.

    It has a session of its own and, on Linux, two guardians (``rl2meta.workers.guardian``).

    It is a new interpreter and not a fork: a fork after torch has started its threads may hang. The main
    module is not run again: it may import torch, or have no ``if __name__ == "__main__"``.

    Args:
        told: the first message to the worker.
        memory: the descriptor of the shared memory.
        mark: the worker's row of ``Arrays.mark``.
        timeout: seconds that one call of an environment may take.

    Attributes:
        pid: the process id; until ``started`` that of its first guardian, which does not outlive it, nor it
            the guardian.

    Raises:
        OSError: if the system has no room for it.
    """

    def __init__(self, told: Setup | Probe, memory: int, mark: Array, timeout: float) -> None:
        if os.name != "posix":
            raise EnvironmentFault("worker processes need Linux or macOS; set workers.processes=0")
        self._mark, self._timeout = mark, timeout
        mark[:] = 0, -1, CALLS.index("import"), 0
        self._process, self._connection, self._stack = _start(memory)
        self.pid = self._process.pid
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        self.send(pickle.dumps(told))

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
        self.pid = int(self.result())

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
        if self._process.stdin is not None:
            self._process.stdin.close()  # the worker's lifeline, should somebody have killed the guardians
        if guardian.POSSIBLE:
            for number in (guardian.END, signal.SIGCONT):  # it may have been stopped
                self._process.send_signal(number)
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        os.close(self._stack)

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
            self._process.send_signal(signal.SIGUSR1)  # guardians pass it on
        until = time.monotonic() + _ASKING
        while not os.fstat(self._stack).st_size and time.monotonic() < until:
            time.sleep(_WRITING / 10)
        time.sleep(_WRITING)
        lines = os.pread(self._stack, _LONGEST_STACK, 0).decode(errors="replace").splitlines()
        frames = [line.strip() for line in lines if line.lstrip().startswith("File ") and not is_own(line)]
        return cut("".join(f"\n    {frame}" for frame in reversed(frames) if '"<' not in frame))

    def _receive(self) -> None:
        message = self.result()
        if message != DONE:
            raise Failed(pickle.loads(message))

    def _death(self) -> str:
        try:
            code = self._process.wait(_DYING)
        except subprocess.TimeoutExpired:
            return "the worker process closed its connection"
        if code < 0:
            return f"the worker process was killed by {signal_name(-code)}"
        return f"the worker process ended with exit code {code}"

    def _fault(self, what: str, details: str = "") -> Fault:
        _, slot, call, step = (int(value) for value in self._mark)
        idle = CALLS[call] in ("nothing", "import")
        return Fault(what, CALLS[call], None if idle else slot, step, details)


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Turn an error of the system in the block into one that says what to do about it.

    Raises:
        EnvironmentFault: for an OSError, such as no descriptor, process or memory left.
    """
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"cannot start {count} worker processes: {error}; set workers.processes lower, or raise "
            "the limit of the system (ulimit -a shows all)"
        ) from None


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL, or its number in words."""
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


def _start(memory: int) -> tuple[subprocess.Popen[bytes], Connection, int]:
    """Return a new process, our end of the connection to it, and the file that it writes its stack to."""
    path = ascii([entry for entry in sys.path if isinstance(entry, str)])  # imports ignore the others
    with ExitStack() as opened:  # closes everything if the process cannot be started
        stack = nameless_memory(0)
        opened.callback(os.close, stack)
        ours, theirs = (opened.enter_context(end) for end in socket.socketpair())
        handed = theirs.fileno(), memory, stack
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
