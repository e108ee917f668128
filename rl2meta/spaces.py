"""Gymnasium spaces as flat float vectors, on any device."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rl2meta.counted import from_zero
from rl2meta.errors import UserError

_LARGEST_IDENTITY = 1024
_LARGEST_ONE_HOT = 1024  # a network looks larger numbers up in a table
_LARGEST_TABLE = 10**6


@dataclass(frozen=True)
class Encoding:
    """The encoding of a space's elements as float vectors.

    Attributes:
        size: the length of the vector.
        encode: elements [..., *element shape] -> float vectors [..., size].
    """

    size: int
    encode: Callable[[Tensor], Tensor]


def encoding(space: gym.Space[Any]) -> Encoding:
    """Return the encoding of ``space``: one-hot for Discrete, the flattened vector for Box.

    For MultiDiscrete and MultiBinary it is the one-hot vectors of all entries, one after another.

    Raises:
        TypeError: for any other space.
    """
    if isinstance(space, gym.spaces.Discrete):
        return Encoding(int(space.n), lambda x: _one_hot(x - int(space.start), int(space.n)))
    if isinstance(space, gym.spaces.Box):
        dims = len(space.shape)
        return Encoding(gym.spaces.flatdim(space), lambda x: _flatten(x, dims))
    if isinstance(space, gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
        return _encoding_of_entries(space)
    raise TypeError(
        f"expected a Discrete, Box, MultiDiscrete or MultiBinary space, got {space}; flatten it with "
        "gymnasium.wrappers.FlattenObservation"
    )


def input_encoding(space: gym.Space[Any]) -> Encoding:
    """Return the encoding of observations for a network: ``encoding``, but see ``num_looked_up``.

    Raises:
        TypeError: for spaces without an encoding, and Discrete spaces too large for a table.
    """
    if not num_looked_up(space):
        return encoding(space)
    assert isinstance(space, gym.spaces.Discrete)
    before = int(space.start) - 1
    return Encoding(1, lambda x: (x - before).float().unsqueeze(-1))


def num_looked_up(space: gym.Space[Any]) -> int:
    """Return the number of rows of a table of observations; 0 for spaces whose encoding is seen as it is.

    A one-hot vector for more than 1,024 values takes too much memory. Their encoding is the number of the
    value, [..., 1], counted from 1, because 0 is no value. Networks look it up in a ``Lookup``.

    Raises:
        UserError: for more than a million values.
    """
    if not isinstance(space, gym.spaces.Discrete) or space.n <= _LARGEST_ONE_HOT:
        return 0
    if space.n > _LARGEST_TABLE:
        raise UserError(
            f"expected at most {_LARGEST_TABLE:,} discrete observations, each of which gets its own row of "
            f"weights, got {space}; give the agent a vector that says what the number means"
        )
    return int(space.n) + 1


def _encoding_of_entries(space: gym.spaces.MultiDiscrete | gym.spaces.MultiBinary) -> Encoding:
    counted = from_zero(space)
    assert isinstance(counted, gym.spaces.MultiDiscrete)  # so from_zero says
    first = torch.as_tensor(getattr(space, "start", np.zeros(space.shape))).long().flatten()  # [entries]
    sizes, dims = counted.nvec.tolist(), len(space.shape)
    offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0) - first  # [entries]

    def encode(x: Tensor) -> Tensor:
        flat = x.reshape(*x.shape[: x.dim() - dims], -1).long() + offsets.to(x.device)  # [..., entries]
        return torch.zeros(*flat.shape[:-1], sum(sizes), device=x.device).scatter_(-1, flat, 1.0)

    return Encoding(sum(sizes), encode)


def bounded(space: gym.Space[Any], device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """Return a function that clips actions to a Box's bounds, and returns actions of other spaces unchanged.

    A Gaussian policy has no bounds. Its log-probability is that of the action before clipping; the
    environment gets the clipped action.
    """
    if not isinstance(space, gym.spaces.Box):
        return lambda action: action
    low, high = (torch.as_tensor(bound, device=device) for bound in (space.low, space.high))
    return lambda action: torch.clamp(action, low, high)


def _one_hot(index: Tensor, size: int) -> Tensor:
    # F.one_hot would read the largest index back from the device to check it; the identity's rows do not.
    if size > _LARGEST_IDENTITY:  # an identity matrix of this size takes too much memory
        return (index.unsqueeze(-1) == torch.arange(size, device=index.device)).float()
    return F.embedding(index, _identity(size, index.device))


@functools.cache
def _identity(size: int, device: torch.device) -> Tensor:
    return torch.eye(size, device=device)


def _flatten(x: Tensor, dims: int) -> Tensor:
    return x.float().reshape(*x.shape[: x.dim() - dims], -1)
