"""The description of a reference for the command line: how to build it, and which constants to tune."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rl2meta.trial import Agent


@dataclass(frozen=True)
class Reference:
    """How to build a reference, and which of its constants to tune.

    Attributes:
        description: one line.
        build: constants by keyword -> agent; every constant has a default, and bad values raise ValueError.
        grid: candidate values of each constant, to be tuned on training tasks; empty if there are none.
    """

    description: str
    build: Callable[..., Agent[Any]]
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def require(condition: bool, expected: str) -> None:
    """Raise a ValueError with what was ``expected``, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"expected {expected}")
