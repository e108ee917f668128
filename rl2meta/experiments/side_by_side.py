"""Calls in processes of their own, some at a time; all of them end with the process that started them."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from rl2meta.errors import UserError

Say = Callable[[str], None]
"""Called with one line of text."""
_PATIENCE = 5.0  # seconds that a process has to end after it was asked to


class _Call(NamedTuple):
    """A call in a process, and the end of the pipe on which it says something."""

    process: BaseProcess
    said: Connection


class _Said(NamedTuple):
    """What a process says: a line, or the message of an error that the user can correct."""

    text: str
    is_error: bool = False


def side_by_side(
    function: Callable[..., None], calls: Sequence[tuple[Any, ...]], jobs: int, say: Say
) -> None:
    """Call ``function(*arguments, say)`` for each of ``calls``, at most ``jobs`` at a time.

    With one job the calls run here, one after the other. Otherwise each has a process of its own. Whatever
    ends this function (also a signal that raises) ends these processes.

    Args:
        function: of a module, not of a class or another function.
        calls: the arguments of each call; pickle must take them.
        jobs: the number of processes at a time.
        say: called here with the lines that the calls say.

    Raises:
        UserError: if calls end with an error, after all others have ended; the message has all of them.
    """
    errors: list[str] = []
    if jobs == 1:
        for arguments in calls:
            try:
                function(*arguments, say)
            except UserError as error:
                errors.append(str(error))
        calls = ()
    waiting, running = list(calls), dict[Connection, _Call]()
    with _ended(running):
        while waiting or running:
            while waiting and len(running) < jobs:
                call = _started(function, waiting.pop(0))
                running[call.said] = call
            for said in wait(list(running)):
                assert isinstance(said, Connection)
                errors += _heard(running, said, say)
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))


def _started(function: Callable[..., None], arguments: tuple[Any, ...]) -> _Call:
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork once it has threads
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(function, arguments, theirs))
    with held_back(signal.SIGINT):  # the terminal sends Ctrl-C to all, and we act on it
        process.start()
    theirs.close()  # so that the end of the process ends the pipe
    return _Call(process, ours)


@contextmanager
def held_back(*signals: signal.Signals) -> Iterator[None]:
    """Keep signals from a process that starts in the block, until it unblocks them."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # a new process inherits this
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _heard(running: dict[Connection, _Call], said: Connection, say: Say) -> list[str]:
    """Pass on what a process says; return its errors, also that it ended in another way than it should."""
    try:
        line: _Said = said.recv()
    except EOFError:
        process = running.pop(said).process
        process.join()
        said.close()
        code = process.exitcode
        return [] if code == 0 else [f"a process ended with exit code {code}; the same command goes on"]
    if line.is_error:
        return [line.text]
    say(line.text)
    return []


@contextmanager
def _ended(running: dict[Connection, _Call]) -> Iterator[None]:
    """End the processes that still run when the block ends."""
    try:
        yield
    finally:
        for call in running.values():
            call.process.terminate()
        for call in running.values():
            call.process.join(_PATIENCE)
            if call.process.is_alive():
                call.process.kill()
                call.process.join()


def _run(function: Callable[..., None], arguments: tuple[Any, ...], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        function(*arguments, lambda line: pipe.send(_Said(line)))
    except UserError as error:
        pipe.send(_Said(str(error), is_error=True))
    except BrokenPipeError:  # the process that started us is gone
        return


def is_orphan() -> bool:
    """Return whether the process that started this one for a call has ended."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()
