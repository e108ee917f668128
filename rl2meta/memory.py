"""How the process gets its memory. This file does not import torch, because it has to run before torch."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def keep_memory() -> bool:
    """Keep freed memory for the next allocation; return whether the C library could be told (glibc can).

    An update frees tensors of tens of megabytes and allocates them again. By default glibc returns each to
    the kernel. The kernel has to fill the pages of the next tensor with zeros when they are first touched,
    which takes up to half of an update's time.

    This function also asks torch to let large tensors begin at pages of 2 MiB, which works if torch has not
    been loaded yet. The process then keeps little more memory than it used at once; otherwise it keeps up to
    a few times the largest tensor more. ``THP_MEM_ALLOC_ENABLE=0`` in the environment leaves torch as it is.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read when torch first allocates
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
