"""How the process gets its memory; imports no torch, for it has to come first."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def keep_memory() -> bool:
    """Keep freed memory for the next allocation; return whether the C library could be told (glibc can).

    An update frees and takes again tensors of tens of megabytes. By default glibc hands each back to the
    kernel, which has to fill the next with zeros, page by page, as it is touched: up to half of an update's
    time goes there. What is kept is little more than what was in use at once where large tensors begin at
    pages of 2 MiB, which torch is asked for too, if it has not been loaded yet; elsewhere up to a few times
    the largest tensor. ``THP_MEM_ALLOC_ENABLE=0`` in the environment leaves torch as it is.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read when torch first allocates
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
