"""A cache of what attention looks up: some numbers for each step of each trial, with room for more steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST_ROOM, _MOST_FIRST_ROOM = 16, 1024  # steps


@dataclass
class Cache:
    """What the steps of B trials have left, with room for more steps.

    A state of a core is a cache and the number of steps in it that belong to the state; later ones belong to
    states that follow. Without gradients a step is written behind those of its state, into the same memory.

    Attributes:
        layers: one for each attention, [..., room, size].
        steps: how many steps are written; what follows in memory is arbitrary.
    """

    layers: list[Tensor]
    steps: int = 0


def first_room(steps: int | None) -> int:
    """Return for how many steps a new cache has room if a trial has at most ``steps``, or None if unknown."""
    return min(steps or _FIRST_ROOM, _MOST_FIRST_ROOM)


def with_room(cache: Cache, steps: int) -> Cache:
    """Return a cache into which the step after the first ``steps`` may be written.

    If the cache is full, or holds later steps, the result is a copy of the first ``steps``; so states that
    share the cache stay as they are.
    """
    if torch.is_grad_enabled():
        return Cache([*cache.layers], steps)  # nothing is written in place
    room = min((kept.shape[-2] for kept in cache.layers), default=steps + 1)
    if steps == cache.steps and steps < room:
        return cache
    wanted = max(1, 2 * room) if steps == room else room
    return Cache([_copied(kept, steps, wanted) for kept in cache.layers], steps)


def repeated(cache: Cache, steps: int, times: int, axis: int) -> Cache:
    """Return the first ``steps`` steps, each trial of ``axis`` so many times side by side."""
    return Cache([kept[..., :steps, :].repeat_interleave(times, dim=axis) for kept in cache.layers], steps)


def written(kept: Tensor, new: Tensor, steps: int) -> Tensor:
    """Return a layer [..., room, size] with ``new``, [..., 1, size], behind its first ``steps`` steps."""
    if torch.is_grad_enabled():  # what a gradient needs must not change
        return torch.cat([kept[..., :steps, :], new], dim=-2)
    kept[..., steps : steps + 1, :] = new
    return kept


def _copied(kept: Tensor, steps: int, room: int) -> Tensor:
    """Return a copy of the first ``steps`` steps with room for ``room``, [..., room, size]."""
    copy = kept.new_empty(*kept.shape[:-2], room, kept.shape[-1])
    copy[..., :steps, :] = kept[..., :steps, :]
    return copy
