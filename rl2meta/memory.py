"""How the process gets its memory, and how much is left. It runs before torch, and so does not import it."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_SLACK = 2**28  # memory that is asked for and never used, such as the stacks of threads


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


def available() -> int | None:
    """Return how many bytes this process may get beyond what it has, at most; None if that is not known.

    That is the free memory and swap of the machine; a limit of the process or its control group may be lower.
    """
    if not sys.platform.startswith("linux"):
        return None
    import resource

    known = _kilobytes("/proc/meminfo")
    if "MemAvailable" not in known:
        return None
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    limits = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    return min([1024 * (known["MemAvailable"] + known.get("SwapFree", 0)), *limits, *_group_limits()])


@contextmanager
def limited() -> Iterator[None]:
    """Inside ``with``, let this process get no more memory than there is, so that what asks for more fails.

    Without it, Linux promises memory that it does not have, and later kills a process that uses it.
    """
    room = available()
    if room is None or not sys.platform.startswith("linux"):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = 1024 * _kilobytes("/proc/self/status").get("VmData", 0) + room + _SLACK
    ends = [limit for limit in before if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([most, *ends]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _kilobytes(path: str) -> dict[str, int]:
    """Return the entries in kB of a file of /proc, by name; none if there is no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    entries = (line.partition(":")[::2] for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) for name, value in entries}


def _group_limits() -> Iterator[int]:
    """Yield the memory limits of the control groups of this process."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in own:
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            name = "memory.limit_in_bytes" if kinds else "memory.max"
            root = Path("/sys/fs/cgroup", kinds)
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    yield from _number(folder / name)


def _number(path: Path) -> Iterator[int]:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return
    if text.isdigit():  # not "max"
        yield int(text)
