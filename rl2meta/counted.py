"""Discrete spaces as agents see them: every number counts from 0.

This module imports no torch: worker processes import it.
"""

from typing import Any

import gymnasium as gym
import numpy as np

ACTION_MASK = "action_mask"
"""The name of what says which actions are legal, in the info, or in a Dict observation of an environment."""


def from_zero(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the space that agents see in place of a discrete one, with as many elements; others stay.

    Discrete starts at 0. MultiDiscrete and MultiBinary become a MultiDiscrete of one axis that starts at 0.
    """
    if isinstance(space, gym.spaces.Discrete):
        return gym.spaces.Discrete(int(space.n))
    if isinstance(space, gym.spaces.MultiDiscrete):
        return gym.spaces.MultiDiscrete(space.nvec.ravel())
    if isinstance(space, gym.spaces.MultiBinary):
        return gym.spaces.MultiDiscrete(np.full(space.shape, 2).ravel())
    return space


def as_element(space: gym.Space[Any], action: Any) -> Any:
    """Return the element of a discrete ``space`` that an element of ``from_zero(space)`` stands for."""
    if isinstance(space, gym.spaces.Discrete):
        return action + space.start
    shaped = np.reshape(action, space.shape or ())
    return (shaped + getattr(space, "start", 0)).astype(space.dtype)  # MultiBinary has no start


def is_counted(space: gym.Space[Any]) -> bool:
    """Return whether elements of the space are numbers of alternatives, which a mask can forbid."""
    counted = gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary
    return isinstance(space, counted)


def sizes_of(space: gym.Space[Any]) -> list[int]:
    """Return how many values each entry of a discrete space has; one entry for Discrete."""
    counted = from_zero(space)
    if isinstance(counted, gym.spaces.Discrete):
        return [int(counted.n)]
    assert isinstance(counted, gym.spaces.MultiDiscrete)
    return [int(size) for size in counted.nvec]
