"""Ctrl-C, SIGTERM and a lost terminal: training stops after the current update, other commands at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rl2meta.errors import UserError

_BASE = 128  # a shell's exit code for a process that ended by signal n is 128 + n
Handler = Callable[[int, FrameType | None], None]


class Interrupted(BaseException):
    """A signal asked the process to end; ``except Exception`` does not catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = _BASE + number


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    """Handle a signal by raising ``Interrupted``."""
    raise Interrupted(number)


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Call ``handler`` for SIGINT, SIGTERM and SIGHUP inside the block.

    A signal that the parent process ignores (``nohup``) stays ignored.

    Raises:
        Interrupted: if ``handler`` raises it, also where it led to another error (``unmasked``).
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    taken = {number: former for number, former in before.items() if former is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, handler)
    try:
        with unmasked():
            yield
    finally:
        for number, former in taken.items():
            signal.signal(number, former)


@contextmanager
def unmasked() -> Iterator[None]:
    """Raise ``Interrupted`` where it led to another error inside the block.

    A signal may come while a lock is being taken; giving it back then fails with an error of its own.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Interrupted):
            cause = cause.__context__
        if cause is None:
            raise
        raise cause from None
