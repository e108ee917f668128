"""What can go wrong with an environment, said so that a person can mend it."""

import os
import traceback
from typing import Any, NamedTuple

from rl2meta.errors import UserError

CALLS = ("import", "make_env", "set_task", "reset", "step", "close", "nothing")
"""What a worker may be doing; their indices go through shared memory."""
_OWN_FRAMES = os.path.dirname(os.path.dirname(__file__)) + os.sep


class Fault(NamedTuple):
    """One failure of one environment.

    Attributes:
        what: the failure in words, such as ``raised ValueError: ...``.
        call: which of ``CALLS`` it happened in.
        slot: which environment, or None where it was none.
        step: steps taken in the trial before.
        details: a traceback, or nothing.
    """

    what: str
    call: str
    slot: int | None
    step: int
    details: str = ""

    @property
    def point(self) -> tuple[str, int | None, int]:
        """Where in the trial it happened."""
        return self.call, self.slot, self.step

    @property
    def killed(self) -> bool:
        """Whether it was killed from outside, such as for want of memory, which need not happen again."""
        return self.what.endswith("SIGKILL")

    def said(self, tasks: Any = None, seeds: Any = None) -> str:
        """Return the failure with environment, task, seed and step."""
        if self.slot is None:
            when = {"import": " while it started", "nothing": " between two calls"}.get(self.call, "")
            return f"{self.what}{when}{self.details}"
        known = "" if tasks is None else f" (task {_short(tasks[self.slot])}, seed {seeds[self.slot]})"
        return f"environment {self.slot}{known}, step {self.step}, {self.call}: {self.what}{self.details}"


class EnvironmentFault(UserError):
    """A family or one of its environments failed; what to do about it stands in the message."""


class Failed(Exception):
    """An environment raised, or its process died or hung; carries the ``Fault``."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.said())
        self.fault = fault


class Broken(Exception):
    """An environment broke a rule of Gymnasium's or of ours; the message says which."""


def fault_of(error: BaseException, call: str, slot: int | None, step: int) -> Fault:
    """Return what an exception that came out of an environment means."""
    if isinstance(error, Broken):
        return Fault(str(error), call, slot, step)
    if isinstance(error, SystemExit):
        return Fault(f"called sys.exit({error.code!r})", call, slot, step)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_own(frame.filename)]
    details = "".join(f"\n    {line}" for text in traceback.format_list(frames) for line in text.splitlines())
    return Fault(f"raised {type(error).__name__}: {error}", call, slot, step, details)


def told(error: BaseException) -> str:
    """Return what an exception says that came from elsewhere than an environment's call."""
    fault = fault_of(error, "nothing", None, 0)
    return f"{fault.what}{fault.details}"


def is_own(frame: str) -> bool:
    """Return whether a frame is of this package, and none that a person could mend."""
    return _OWN_FRAMES in frame


def _short(task: Any) -> str:
    text = repr(task)
    return text if len(text) <= 200 else f"{text[:200]}..."
