"""What the command line needs to know of a reference: how to build it, and what to tune."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rl2meta.trial import Agent


@dataclass(frozen=True)
class Reference:
    """How to build a reference, and what to tune of it.

    Attributes:
        description: one line.
        build: constants by keyword -> agent; every constant has a default, and bad ones raise ValueError.
        grid: the values of each constant among which training tasks choose; empty if there is none.
    """

    description: str
    build: Callable[..., Agent[Any]]
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def require(condition: bool, expected: str) -> None:
    """Raise ValueError that says what was ``expected`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"expected {expected}")
