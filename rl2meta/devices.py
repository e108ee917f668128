"""Chooses the device, the precision and the CPU threads that torch computes with."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from rl2meta.errors import UserError
from rl2meta.kernels import denormals_flushed, kernels_restored

Precision = Literal["float32", "tf32"]
_WORTH_A_THREAD = 2**15  # numbers of an elementwise operation for which torch uses one more thread


def resolve_device(name: str, rank: int | None = None) -> torch.device:
    """Return the device called ``name``; ``auto`` is the first GPU, or the CPU where there is none.

    Args:
        name: as in a config.
        rank: number of this process among those of its machine that compute together: each has a GPU of its
            own, whatever number ``name`` says; None for a process alone.

    Raises:
        UserError: if the device does not exist. No other device silently replaces it.
    """
    if rank is not None and name != "cpu" and (torch.cuda.is_available() or name != "auto"):
        name = f"cuda:{rank}"
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    wanted = {"auto": there[min(1, len(there) - 1)], "cuda": "cuda:0"}.get(name, name)
    if wanted not in there:
        raise UserError(
            f"device: expected one that is there (auto, {', '.join(there)}), got {name!r}; it is not there"
        )
    return torch.device(wanted)


def set_precision(precision: Precision) -> None:
    """Set whether products on a GPU round their factors to TF32's 10 bits of mantissa, or keep float32's 23.

    By torch's defaults cuDNN's recurrent kernels round, and the products of a single step do not. Then the
    agent's actions would differ from those that its learner computes again.
    """
    # Not by torch's newer fp32_precision: after it torch refuses to read these flags, which other code reads.
    rounded = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = rounded


def set_threads(threads: int | None) -> int:
    """Let torch use ``threads`` CPU threads, and return their number.

    If ``threads`` is None, OMP_NUM_THREADS says how many; without it, there is one per core that this process
    may use. If torch has not begun its threads yet, they flush denormal numbers (``denormals_flushed``).
    """
    default = torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else cores()
    torch.set_num_threads(threads or default)
    with denormals_flushed():
        torch.zeros(torch.get_num_threads() * _WORTH_A_THREAD).add_(1)  # begins torch's threads
    return torch.get_num_threads()


@contextmanager
def numerics_restored() -> Iterator[None]:
    """Set threads, precision and kernels again, at the end of ``with``, to what they were at its start."""
    threads, rounded = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    try:
        with kernels_restored():
            yield
    finally:
        torch.set_num_threads(threads)
        set_precision("tf32" if rounded else "float32")


def cores() -> int:
    """Return how many CPU cores this process may use; ranks of one machine share its cores."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
