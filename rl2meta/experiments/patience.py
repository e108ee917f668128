"""Time limits, and words about what is under way."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class OutOfTime(BaseException):
    """A time limit is over; ``except Exception`` of an environment does not catch it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in the block after some seconds: in the main thread, where the system has alarms.

    An alarm ends Python code and sleeps; a call into compiled code is ended when it returns. Elsewhere there
    is no limit.
    """
    possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not possible:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Watch:
    """How long each step of some work may take, and which one is under way.

    Args:
        limit: of each step, in seconds.
        say: gets the name of each step as it begins.
    """

    def __init__(self, limit: float, say: Callable[[str], None] = lambda what: None) -> None:
        self.limit, self.now, self._say = limit, "", say

    def begin(self, what: str) -> None:
        """Note that a step, or a part of it, begins."""
        self.now = what
        self._say(what)

    @property
    def late(self) -> str:
        """What to say of a step that took too long."""
        return (
            f"could not tell: {self.now!r} took more than {self.limit:g} s, and the rest of this check was "
            "not tried; are the environments slow, or their observations large? A larger --limit gives it "
            "more time"
        )
