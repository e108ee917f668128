"""The arrays that the main process and its workers share: one block of memory without a name."""

import math
import mmap
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl2meta.descriptors import fill_standard_descriptors
from rl2meta.workers.family import Described, acted, observed

Array = NDArray[Any]


@dataclass
class Arrays:
    """Views on the arrays of B environments, which W workers write.

    Attributes:
        action: [B, ...], the next actions.
        observation: [B, ...], the current observations.
        final: [B, ...], the last observation of an episode that ended in the last step.
        reward: [B], of the last step.
        terminated, truncated: bool [B].
        legal: bool [B, A], which actions may be taken next; A = 0 for families without masks.
        known: [number of emitted values, B], the values in the info of the last step.
        left: int64 [B], episodes left to play until the next reset; below 0: no limit.
        mark: int64 [W, 4], what each worker is doing: the number of calls that it has begun outside of
            steps, the environment, the index of the call, and the number of steps taken before in the
            trial. It changes as long as the worker makes progress.
    """

    action: Array
    observation: Array
    final: Array
    reward: Array
    terminated: Array
    truncated: Array
    legal: Array
    known: Array
    left: Array
    mark: Array

    def slots(self, slots: slice, worker: int) -> "Arrays":
        """Return the part of the arrays that one worker writes."""
        part = {name: array[slots] for name, array in vars(self).items() if name not in ("known", "mark")}
        return Arrays(**part, known=self.known[:, slots], mark=self.mark[worker])


Layout = dict[str, tuple[int, tuple[int, ...], str]]  # name -> offset, shape, dtype


def layout_of(described: Described, num_envs: int, num_workers: int) -> tuple[Layout, int]:
    """Return the place of each array in the memory, and the size of the memory in bytes."""
    seen, done = observed(described.observation_space), acted(described.action_space)
    each: dict[str, tuple[tuple[int, ...], Any]] = {
        "action": ((num_envs, *(done.shape or ())), done.dtype),
        "observation": ((num_envs, *(seen.shape or ())), seen.dtype),
        "final": ((num_envs, *(seen.shape or ())), seen.dtype),
        "reward": ((num_envs,), np.float64),
        "terminated": ((num_envs,), np.bool_),
        "truncated": ((num_envs,), np.bool_),
        "legal": ((num_envs, described.mask_size), np.bool_),
        "known": ((len(described.emits), num_envs), np.float64),
        "left": ((num_envs,), np.int64),
        "mark": ((num_workers, 4), np.int64),
    }
    layout, size = Layout(), 0
    for name, (shape, dtype) in each.items():
        layout[name] = size, shape, np.dtype(dtype).str
        size += -(-math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64  # no two share a cache line
    return layout, size


def views(buffer: Any, layout: Layout) -> Arrays:
    """Return the arrays of a layout in a buffer."""
    return Arrays(
        **{
            name: np.frombuffer(buffer, dtype, math.prod(shape), offset).reshape(shape)
            for name, (offset, shape, dtype) in layout.items()
        }
    )


def nameless_memory(size: int) -> int:
    """Return the descriptor of ``size`` bytes of memory, which is freed when the last user of it ends.

    Memory without a name cannot be left behind, no matter how its processes end. The descriptor is above 2,
    so that it can be handed to another process.
    """
    fill_standard_descriptors()
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("rl2meta")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def shared_memory(size: int) -> tuple[int, mmap.mmap]:
    """Return the descriptor of ``size`` bytes of nameless memory, and the memory."""
    descriptor = nameless_memory(size)
    try:
        return descriptor, mapped(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def mapped(descriptor: int) -> mmap.mmap:
    """Return the memory behind a descriptor."""
    return mmap.mmap(descriptor, os.fstat(descriptor).st_size)
