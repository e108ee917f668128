"""A worker process, started by ``rl2meta.workers.process``.

It does not import torch, unless a family does: after a worker was killed, a new one must start quickly.
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
    """The first message to a worker.

    Attributes:
        family, described: pickled, so that a failing import is a fault like any other.
        layout: of the arrays of all environments.
        first, last: the slots of this worker: from ``first`` to ``last - 1``.
        worker: the number of this worker.
    """

    family: bytes
    described: bytes
    layout: Layout
    first: int
    last: int
    worker: int


class Probe(NamedTuple):
    """The first message to a worker that only takes a first look at an environment.

    Attributes:
        family: pickled.
        task: of the environment.
    """

    family: bytes
    task: Task


def main() -> None:
    """Execute the commands that come in until there are no more, or until the main process is gone."""
    handed = socket, memory, stack = [int(word) for word in sys.argv[2:]]
    connection = Connection(socket)
    for descriptor in handed:
        os.set_inheritable(descriptor, False)  # programs that an environment starts must not get them
    _end_with_the_main_process()
    _ignore_signals()
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)  # tells where it hangs
    try:
        told: Setup | Probe = pickle.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return
    try:
        family = pickle.loads(told.family)
        if isinstance(told, Probe):
            work = partial(_look, connection, family, told.task, memory)
        else:
            work = partial(_serve, connection, _slots(family, told, memory))
    except BaseException as error:
        _tell(connection, fault_of(error, "import", None, 0))
        return
    _send(connection, DONE)
    _send(connection, str(os.getpid()).encode())
    work()


def _look(connection: Connection, family: SingleFamily, task: Task, memory: int) -> None:
    mark = np.frombuffer(mapped(memory), np.int64)
    try:
        found = pickle.dumps(look(family, task, mark))
    except BaseException as error:
        _tell(connection, fault_of(error, CALLS[mark[2]], 0, 0))
        return
    _send(connection, DONE)
    _send(connection, found)


def _send(connection: Connection, message: bytes) -> None:
    with suppress(OSError):  # the main process is gone, and this one soon is
        connection.send_bytes(message)


def _tell(connection: Connection, fault: Fault) -> None:
    _send(connection, pickle.dumps(fault))


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
            if message == b"step":  # the only command that must be fast
                slots.step()
            else:
                _obey(slots, *pickle.loads(message))
        except Failed as failure:
            _tell(connection, failure.fault)
        except BaseException as error:  # any exception: it must not look as if the process had died
            _tell(connection, slots.fault(error))
        else:
            _send(connection, DONE)


def _obey(slots: Slots, command: str, arguments: tuple[Any, ...]) -> None:
    commands: dict[str, Callable[..., None]] = {
        "begin": slots.begin,
        "reset": slots.reset,
        "close": slots.close,
    }
    commands[command](*arguments)


def _end_with_the_main_process() -> None:
    """End this process and its group as soon as the main process ends in any way; guardians end the rest.

    Standard input is a pipe, and only the main process has its other end. Linux can send a signal when that
    end closes. Elsewhere a thread waits for it; this thread cannot run while an environment hangs in C code.
    """
    import fcntl  # not at the top: Windows has no fcntl, and the main process imports this module there too

    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    with suppress(AttributeError, OSError):  # only Linux has F_SETSIG
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)

    def wait() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _ignore_signals() -> None:
    """Leave the terminal's Ctrl-C and a job's SIGTERM to the main process.

    The handler does nothing. SIG_IGN would not work: programs that an environment starts inherit it, and then
    nobody could terminate them.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        mask(signal.SIG_UNBLOCK)

    def mask(how: int) -> None:
        signal.pthread_sigmask(how, numbers)

    os.register_at_fork(  # signals during a fork are not lost: the new process may be terminated at once
        before=partial(mask, signal.SIG_BLOCK),
        after_in_parent=partial(mask, signal.SIG_UNBLOCK),
        after_in_child=restore,
    )
