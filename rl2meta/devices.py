"""The device that a run asks for, or an error that names those that are there."""

import ctypes
import os
from typing import Any, Literal

import torch

from rl2meta.errors import UserError

Precision = Literal["float32", "tf32"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        UserError: if the device is not there. It is never replaced by another in silence.
    """
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    wanted = {"auto": there[min(1, len(there) - 1)], "cuda": "cuda:0"}.get(name, name)
    if wanted not in there:
        raise UserError(
            f"device: expected one that is there (auto, {', '.join(there)}), got {name!r}; it is not there"
        )
    keep_memory()
    return torch.device(wanted)


def set_precision(precision: Precision) -> None:
    """Let products on a GPU round their factors to TF32's 10 bits of mantissa, or keep all of float32's 23.

    By default cuDNN's recurrent kernels would round and a single step's products would not: what an agent
    does would differ from what its learner replays.
    """
    value = {"float32": "ieee", "tf32": "tf32"}[precision]
    backends: Any = torch.backends
    for kind in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
        kind.fp32_precision = value


def set_threads(threads: int | None) -> int:
    """Let torch use ``threads`` CPU threads; return the number.

    If none is given, what OMP_NUM_THREADS says, or else one per core that this process may use.
    """
    default = torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else cores()
    torch.set_num_threads(threads or default)
    return torch.get_num_threads()


def keep_memory() -> bool:
    """Keep freed memory for the next allocation; return whether the C library could be told (glibc can).

    An update frees and takes again tensors of tens of megabytes. By default glibc hands each back to the
    kernel, which has to fill the next with zeros, page by page, as it is touched: up to half of an update's
    time goes there. What is kept is what was in use at once and, for glibc parts what it keeps, up to a few
    times the largest tensor; little more than was in use where THP_MEM_ALLOC_ENABLE=1 aligns large tensors
    to pages of 2 MiB, as the command line sets.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
