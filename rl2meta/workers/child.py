"""A worker process, started by ``rl2meta.workers.process``.

It imports no torch, unless a family does: it has to be there again soon after it was killed.
"""

import faulthandler
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from rl2meta.workers.block import Layout, mapped, views
from rl2meta.workers.family import SingleFamily, Task
from rl2meta.workers.faults import CALLS, Failed, Fault, fault_of
from rl2meta.workers.looking import look
from rl2meta.workers.slots import Slots

DONE = b"done"


class Setup(NamedTuple):
    """What a worker is told when it starts.

    Attributes:
        family, described: pickled, so that what cannot be imported is a fault like any other.
        layout: of all environments.
        first, last: the slots of this worker, ``last`` left out.
        worker: its number.
    """

    family: bytes
    described: bytes
    layout: Layout
    first: int
    last: int
    worker: int


class Probe(NamedTuple):
    """What a worker is told that takes a first look at an environment.

    Attributes:
        family: pickled.
        task: of the environment.
    """

    family: bytes
    task: Task


def main() -> None:
    """Obey the commands that come in until there are no more, or the main process is gone."""
    handed = socket, memory, stack = [int(word) for word in sys.argv[2:]]
    connection = Connection(socket)
    for descriptor in handed:
        os.set_inheritable(descriptor, False)  # what an environment starts has no business with them
    _end_with_the_main_process()
    _ignore_signals()
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)  # where it hangs, if it does
    told: Setup | Probe = pickle.loads(connection.recv_bytes())
    try:
        family = pickle.loads(told.family)
        if isinstance(told, Probe):
            work = partial(_look, connection, family, told.task, memory)
        else:
            work = partial(_serve, connection, _slots(family, told, memory))
    except BaseException as error:
        _tell(connection, fault_of(error, "import", None, 0))
        return
    connection.send_bytes(DONE)
    work()


def _look(connection: Connection, family: SingleFamily, task: Task, memory: int) -> None:
    mark = np.frombuffer(mapped(memory), np.int64)
    try:
        found = pickle.dumps(look(family, task, mark))
    except BaseException as error:
        _tell(connection, fault_of(error, CALLS[mark[2]], 0, 0))
        return
    connection.send_bytes(DONE)
    connection.send_bytes(found)


def _tell(connection: Connection, fault: Fault) -> None:
    connection.send_bytes(pickle.dumps(fault))


def _slots(family: SingleFamily, setup: Setup, memory: int) -> Slots:
    arrays = views(mapped(memory), setup.layout).slots(slice(setup.first, setup.last), setup.worker)
    return Slots(family, pickle.loads(setup.described), arrays, setup.first)


def _serve(connection: Connection, slots: Slots) -> None:
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            if message == b"step":  # the one that has to be fast
                slots.step()
            else:
                _obey(slots, *pickle.loads(message))
        except Failed as failure:
            _tell(connection, failure.fault)
        except BaseException as error:  # which must not look like a death
            _tell(connection, slots.fault(error))
        else:
            connection.send_bytes(DONE)


def _obey(slots: Slots, command: str, arguments: tuple[Any, ...]) -> None:
    commands: dict[str, Callable[..., None]] = {
        "begin": slots.begin,
        "reset": slots.reset,
        "close": slots.close,
    }
    commands[command](*arguments)


def _end_with_the_main_process() -> None:
    """Die, with all that an environment started, as soon as the main process does, however it does.

    Standard input is a pipe whose other end only the main process has. Where the kernel can send a signal
    when that end closes, it does: a thread of ours has to wait for an environment that hangs in C code.
    """
    import fcntl  # Windows, where the main process imports this module too, has none

    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    with suppress(AttributeError, OSError):  # Linux alone has F_SETSIG
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)

    def wait() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _ignore_signals() -> None:
    """Leave the terminal's Ctrl-C and a job's SIGTERM to the main process.

    By a handler that does nothing and not by SIG_IGN, which the programs that an environment starts would
    inherit: they could not be terminated any more.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        mask(signal.SIG_UNBLOCK)

    def mask(how: int) -> None:
        signal.pthread_sigmask(how, numbers)

    os.register_at_fork(  # what comes in between is not lost: a fork may be terminated as soon as it is there
        before=partial(mask, signal.SIG_BLOCK),
        after_in_parent=partial(mask, signal.SIG_UNBLOCK),
        after_in_child=restore,
    )
