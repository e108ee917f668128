"""Gymnasium spaces as flat float vectors, on any device."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor
from torch.nn import functional as F

_LARGEST_IDENTITY = 1024


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

    Raises:
        TypeError: for any other space.
    """
    if isinstance(space, gym.spaces.Discrete):
        return Encoding(int(space.n), lambda x: _one_hot(x - int(space.start), int(space.n)))
    if isinstance(space, gym.spaces.Box):
        dims = len(space.shape)
        return Encoding(gym.spaces.flatdim(space), lambda x: _flatten(x, dims))
    raise TypeError(
        f"expected a Discrete or Box space, got {space}; flatten it with "
        "gymnasium.wrappers.FlattenObservation"
    )


def from_zero(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return a Discrete space with as many elements that starts at 0, as agents see it; others stay."""
    return gym.spaces.Discrete(int(space.n)) if isinstance(space, gym.spaces.Discrete) else space


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
