"""A worker process, started by ``rl2meta.workers.process``.

It imports no torch, unless a family does: it has to be there again within two seconds of being killed.
"""

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from rl2meta.workers.block import Layout, mapped, views
from rl2meta.workers.family import Described
from rl2meta.workers.faults import Fault, fault_of
from rl2meta.workers.lanes import Failed, Lanes

DONE = b"done"


class Setup(NamedTuple):
    """What a worker is told when it starts.

    Attributes:
        family: pickled, so that what cannot be imported is a fault like any other.
        described, layout: of all environments.
        first, last: the lanes of this worker, ``last`` left out.
        worker: its number.
    """

    family: bytes
    described: bytes
    layout: Layout
    first: int
    last: int
    worker: int


def main() -> None:
    """Obey the commands that come in until there are no more, or the main process is gone."""
    connection = Connection(int(sys.argv[1]))
    _end_with_the_main_process()
    setup = Setup(*pickle.loads(connection.recv_bytes()))
    try:
        lanes = _lanes(setup, int(sys.argv[2]))
    except BaseException as error:
        connection.send_bytes(pickle.dumps(tuple(fault_of(error, "import", None, 0))))
        return
    connection.send_bytes(DONE)
    _serve(connection, lanes)


def _lanes(setup: Setup, memory: int) -> Lanes:
    family, described = pickle.loads(setup.family), Described(*pickle.loads(setup.described))
    arrays = views(mapped(memory), setup.layout).lanes(slice(setup.first, setup.last), setup.worker)
    return Lanes(family, described, arrays, setup.first)


def _serve(connection: Connection, lanes: Lanes) -> None:
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            if message == b"step":  # the one that has to be fast
                lanes.step()
            else:
                _obey(lanes, *pickle.loads(message))
        except Failed as failure:
            connection.send_bytes(pickle.dumps(tuple(failure.fault)))
        except BaseException as error:  # a fault of our own, which must not look like a death
            connection.send_bytes(pickle.dumps(tuple(fault_of(error, "nothing", None, 0))))
        else:
            connection.send_bytes(DONE)


def _obey(lanes: Lanes, command: str, arguments: tuple[Any, ...]) -> None:
    commands: dict[str, Callable[..., None]] = {
        "begin": lanes.begin,
        "reset": lanes.reset,
        "close": lanes.close,
    }
    commands[command](*arguments)


def fault_from(message: bytes) -> Fault | None:
    """Return the fault that a worker's answer tells of, or None if it is done."""
    return None if message == DONE else Fault(*pickle.loads(message))


def _end_with_the_main_process() -> None:
    """Die, with all that an environment started, as soon as the main process does, however it does.

    Standard input is a pipe whose other end only the main process has. The terminal's Ctrl-C and a job's
    SIGTERM are the main process's to handle.
    """
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def wait() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
