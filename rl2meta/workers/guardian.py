"""The guardians of a worker: on Linux they end with it all that its environments started.

A program in a session of its own, or one whose parent has ended, is in no group that one signal reaches. But
a process can ask Linux to become the parent of all orphans below it. So the process that the main process
starts, the first guardian, only forks a second one, and this forks the worker:

    main process -> first guardian -> second guardian -> worker -> what environments start

A guardian waits until its child ends. Then it kills its children until it has none, orphans included, and
ends in the way that its child ended. There are two, so that any one of these processes may be killed at any
time: if the first is, the second gets ``END``; if the second is, the first inherits the worker. Therefore the
first passes ``END`` on and never kills the second. They need not watch the main process: the worker does
that, and they end with the worker.

Nothing here imports a large package: the guardians stay small, and the worker starts as fast as without them.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from rl2meta.descriptors import fill_standard_descriptors

POSSIBLE = sys.platform == "linux" and os.path.exists("/proc/self/stat")
"""Whether this system has what guardians need; if not, workers have none."""
END = signal.SIGUSR2 if sys.platform == "linux" else signal.SIGTERM  # not everywhere is there a SIGUSR2
"""The signal to a guardian that ends everything."""
SWEEP_LIMIT = 10.0  # seconds; processes of another user, and those that wait for a device, cannot be killed
_PAUSE = 0.001  # seconds between two looks at the children
_DEATH_SIGNAL, _DUMPABLE, _SUBREAPER = 1, 4, 36  # options of prctl


def guarded(handed: Sequence[int]) -> None:
    """Go on in another process, the worker; the process that calls stays behind as a guardian.

    Where guardians are not possible, the process that calls is the worker. Its standard descriptors are open.

    Args:
        handed: the descriptors of the worker, which guardians close.
    """
    fill_standard_descriptors()
    if not POSSIBLE:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # only SIGKILL ends a guardian
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody learns how a child ended
    first = os.getpid()
    _leave_a_guardian(handed, _passed_on)
    _prctl(_DEATH_SIGNAL, END)
    if os.getppid() != first:  # it ended before that
        os._exit(1)
    _leave_a_guardian(handed, _killed)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_a_guardian(handed: Sequence[int], end: Callable[[int], None]) -> None:
    """Fork, and return in the child only; the parent ends when the child has ended."""
    _prctl(_SUBREAPER, 1)
    try:
        child = os.fork()
    except OSError as error:
        sys.exit(f"a worker process cannot fork: {error}")
    if child:
        try:
            _guard(child, handed, end)
        finally:
            os._exit(1)


def _guard(child: int, handed: Sequence[int], end: Callable[[int], None]) -> None:
    for descriptor in handed:  # the main process must see that the worker's end of the connection closes
        os.close(descriptor)
    status = _watched(child, end)
    _sweep()
    _end_like(status)


def _passed_on(child: int) -> None:
    for number in (END, signal.SIGCONT):  # it may have been stopped
        os.kill(child, number)


def _killed(child: int) -> None:
    os.kill(child, signal.SIGKILL)


def _watched(child: int, end: Callable[[int], None]) -> int:
    """Wait until the child ends; return its wait status."""
    while True:
        number = signal.sigwait({signal.SIGCHLD, signal.SIGUSR1, END})
        if number == signal.SIGUSR1:  # asks the worker where it hangs
            os.kill(child, number)
        elif number == END:
            end(child)
        elif child in (ended := _buried()[0]):
            return ended[child]


def _buried() -> tuple[dict[int, int], bool]:
    """Take note of the children that have ended; return their wait statuses, and whether there are others."""
    ended = dict[int, int]()
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
        return ended, True
    return ended, False


def _sweep() -> None:
    """Kill children until there are none; those of a killed child become children of this process."""
    until = time.monotonic() + SWEEP_LIMIT
    while _buried()[1] and time.monotonic() < until:
        for pid in _children():
            with suppress(PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE)


def _children() -> list[int]:
    own, found = str(os.getpid()).encode(), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[1] == own:  # after the name: state, parent
                found.append(int(name))
    return found


def _end_like(status: int) -> None:
    """End with the exit code, or by the signal, of a wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        _prctl(_DUMPABLE, 0)  # the worker has left a core file already
        with suppress(OSError):  # nobody can handle SIGKILL
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0)))
