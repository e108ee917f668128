"""The description of a reference for the command line: how to build it, and which constants to tune."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rl2meta.trial import Agent

KNOWS_LAW = "knows the law of these tasks"
KNOWS_NOTHING = "has no prior"


@dataclass(frozen=True)
class Reference:
    """How to build a reference, and which of its constants to tune.

    Attributes:
        description: one line.
        build: constants by keyword -> agent; every constant has a default, and bad values raise ValueError.
        grid: candidate values of each constant, to be tuned on training tasks; empty if there are none.
        prior: what the agent knows of the law of the tasks that it is put on, as a predicate.
        episodes: number of episodes in its phases: a trial must have a multiple of them.
    """

    description: str
    build: Callable[..., Agent[Any]]
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    prior: str = KNOWS_LAW
    episodes: int = 1

    def fits(self, num_episodes: int) -> bool:
        """Return whether a trial of so many episodes can be divided into the agent's phases."""
        return num_episodes % self.episodes == 0


def require(condition: bool, expected: str) -> None:
    """Raise a ValueError with what was ``expected``, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"expected {expected}")
