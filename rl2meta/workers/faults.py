"""Failures of environments, with messages that help a user to repair them."""

import os
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from rl2meta.errors import UserError

CALLS = ("import", "make_env", "set_task", "reset", "step", "close", "nothing")
"""The names of what a worker can be doing; shared memory holds their indices."""
LONGEST = 4000
"""The most characters of a text of somebody else's in a message."""
_OWN_FRAMES = os.path.dirname(os.path.dirname(__file__)) + os.sep


class Fault(NamedTuple):
    """One failure of one environment.

    Attributes:
        what: the failure in words, such as ``raised ValueError: ...``.
        call: the one of ``CALLS`` that failed.
        slot: the number of the environment, or None if no environment failed.
        step: number of steps taken before in the trial.
        details: a traceback, or an empty string.
    """

    what: str
    call: str
    slot: int | None
    step: int
    details: str = ""

    @property
    def point(self) -> tuple[str, int | None, int]:
        """The place in the trial where it happened."""
        return self.call, self.slot, self.step

    @property
    def killed(self) -> bool:
        """Whether the process was killed from outside (such as for lack of memory): a retry may succeed."""
        return self.what.endswith("SIGKILL")

    def said(self, tasks: Any = None, seeds: Any = None) -> str:
        """Return the failure with environment, task, seed and step."""
        if self.slot is None:
            when = {"import": " while it started", "nothing": " between two calls"}.get(self.call, "")
            return f"{self.what}{when}{self.details}"
        known = "" if tasks is None else f" (task {_short(tasks[self.slot])}, seed {seeds[self.slot]})"
        return f"environment {self.slot}{known}, step {self.step}, {self.call}: {self.what}{self.details}"


class EnvironmentFault(UserError):
    """A family or one of its environments failed; the message says what to do."""


class Failed(Exception):
    """An environment raised, or its process died or hung; carries the ``Fault``."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.said())
        self.fault = fault


class Broken(Exception):
    """An environment broke a rule of Gymnasium or of this package; the message says which."""


def fault_of(error: BaseException, call: str, slot: int | None, step: int) -> Fault:
    """Return the fault for an exception that an environment raised."""
    if isinstance(error, Broken):
        return Fault(cut(str(error)), call, slot, step)
    if isinstance(error, SystemExit):
        return Fault(f"called sys.exit({cut(_safely(repr, error.code))})", call, slot, step)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_own(frame.filename)]
    details = "".join(f"\n    {line}" for text in traceback.format_list(frames) for line in text.splitlines())
    return Fault(f"raised {named(error)}", call, slot, step, cut(details))


def told(error: BaseException) -> str:
    """Return the message for an exception that a family raised outside of its environments."""
    fault = fault_of(error, "nothing", None, 0)
    return f"{fault.what}{fault.details}"


def named(error: BaseException) -> str:
    """Return the kind and the text of an exception, cut to a message's length."""
    return cut(f"{type(error).__name__}: {words_of(error)}")


def words_of(error: BaseException) -> str:
    """Return the text of an exception, even of one that cannot be turned into a text."""
    return _safely(str, error)


def cut(text: str) -> str:
    """Return a text, or beginning and end of one that is longer than ``LONGEST`` characters."""
    half = LONGEST // 2
    if len(text) <= LONGEST:
        return text
    return f"{text[:half]}[... {len(text) - 2 * half} more characters ...]{text[-half:]}"


def is_own(frame: str) -> bool:
    """Return whether a frame belongs to this package; a user can do nothing about such a frame."""
    return _OWN_FRAMES in frame


def _safely(said: Callable[[Any], str], thing: Any) -> str:
    try:
        return said(thing)
    except Exception as error:
        return f"(no text: {said.__name__}() raises {type(error).__name__})"


def _short(task: Any) -> str:
    text = _safely(repr, task)
    return text if len(text) <= 200 else f"{text[:200]}..."
