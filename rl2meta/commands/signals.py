"""Ctrl-C, SIGTERM and a lost terminal: training stops after the current update, other commands at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

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
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    taken = {number: former for number, former in before.items() if former is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in taken.items():
            signal.signal(number, former)
