"""A reference for any family: an agent that acts at random."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl2meta.agents.references.reference import KNOWS_NOTHING, Reference
from rl2meta.networks import action_distribution, legal_only
from rl2meta.spaces import encoding
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory


class Draws(NamedTuple):
    """The carry: the agent's random stream, and a Box's bounds on the same device.

    Attributes:
        generator: random stream of the actions.
        low, high: a Box's bounds in its shape, 0 where one is infinite; empty for Discrete.
        bounded: bool, true where both bounds are finite.
    """

    generator: torch.Generator
    low: Tensor
    high: Tensor
    bounded: Tensor


class UniformAgent:
    """Takes every action with equal probability and ignores observations.

    In a Box, entries with two finite bounds are uniform between them. Other entries are standard normal,
    because no uniform distribution exists there; the worker clips them to a finite bound. Integers are
    uniform between their bounds, both included.

    Illegal actions are not taken; in a MultiDiscrete, every entry is uniform over its legal values.

    Args:
        action_space: Discrete, MultiDiscrete from 0, or Box.

    Raises:
        TypeError: for another space.
    """

    phase = Phase(episodes=1)

    def __init__(self, action_space: gym.Space[Any]) -> None:
        if not isinstance(action_space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.Box):
            raise TypeError(
                f"expected a Discrete, MultiDiscrete or Box action space, got {action_space}; flatten it in "
                "the environment"
            )
        self._space = action_space

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Draws:
        """Return the generator, and the bounds on its device."""
        return Draws(generator, *(torch.as_tensor(x, device=generator.device) for x in _bounds(self._space)))

    def act(self, carry: Draws, step: TimeStep) -> tuple[Choice, Draws]:
        """Draw an action in each row."""
        rows, source = len(step.reward), carry.generator
        masked = step.legal is not None and step.legal.shape[-1] > 0
        if masked or isinstance(self._space, gym.spaces.MultiDiscrete):
            action = _legal(self._space, step.legal, rows, source)
        elif isinstance(self._space, gym.spaces.Discrete):
            start, n = int(self._space.start), int(self._space.n)
            action = torch.randint(start, start + n, (rows,), generator=source, device=source.device)
        else:
            action = _draw(carry, rows, np.issubdtype(self._space.dtype, np.integer))
        return Choice(action, action), carry

    def adapt(self, carry: Draws, trajectory: Trajectory) -> Draws:
        """Learn nothing."""
        return carry


def random_references(action_space: gym.Space[Any]) -> dict[str, Reference]:
    """Return the references that exist for every family, by name."""
    return {"random": Reference("any action", lambda: UniformAgent(action_space), prior=KNOWS_NOTHING)}


def _legal(space: gym.Space[Any], legal: Tensor | None, rows: int, source: torch.Generator) -> Tensor:
    """Draw legal actions of a discrete space, [rows, ...]."""
    even = torch.zeros(rows, encoding(space).size, device=source.device)
    return action_distribution(space)(legal_only(even, legal)).sample(source)


def _bounds(space: gym.Space[Any]) -> tuple[Any, Any, Any]:
    """Return low, high and whether both are finite, as arrays."""
    if not isinstance(space, gym.spaces.Box):
        return np.zeros(0), np.zeros(0), np.zeros(0, bool)
    bounded = space.bounded_below & space.bounded_above  # the bounds of integers are never infinite
    low, high = (np.where(bounded, bound, 0).astype(np.float32) for bound in (space.low, space.high))
    return low, high, bounded


def _draw(carry: Draws, rows: int, whole: bool) -> Tensor:
    """Draw float [rows, *shape of the Box]; if ``whole``, the floats are integers."""
    share, normal = (carry.low.new_empty(rows, *carry.low.shape) for _ in range(2))
    share.uniform_(generator=carry.generator)
    normal.normal_(generator=carry.generator)
    # low + share × (high − low) would overflow if the bounds are the largest floats.
    inside = (1 - share) * carry.low + share * (carry.high + whole)
    if whole:
        inside, normal = inside.floor(), normal.round()
    return torch.where(carry.bounded, inside.clamp(carry.low, carry.high), normal)
