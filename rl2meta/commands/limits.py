"""What is no bug: a full disk, too little memory, a folder that is gone, names that are not text."""

import os
import re
import sys
from collections.abc import Iterator, Sequence

from rl2meta.errors import UserError

_SCARCE = {
    re.compile(r"too many open files|err(or|no) 24\b", re.IGNORECASE): (
        "expected to open more files than the limit allows; raise it, such as with 'ulimit -n 1024'"
    ),
    re.compile(r"start new thread|resource temporarily unavailable", re.IGNORECASE): (
        "expected to start another thread or process; raise the limits of processes and memory ('ulimit -a')"
    ),
    re.compile(
        r"allocat|out of memory|enough memory|invalid memory size|bad_alloc|alloc_failed|map segment|"
        r"could not create a primitive|overflowed with sizes|multiplication overflow|err(or|no) 12\b",
        re.IGNORECASE,
    ): "expected a size that fits into memory; lower the sizes, or raise the limits ('ulimit -a')",
}
"""What libraries say when files, threads or memory run out, and what is to be done; few raise MemoryError."""
_THREADS = "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"
_LEAST_BYTES, _THREAD_BYTES, _MOST_THREADS = 720_000 * 1024, 60_000 * 1024, 64  # measured; less never works
_KINDS = (ImportError, RuntimeError, OSError, SystemError, MemoryError)


def current_folder() -> str:
    """Return the current folder.

    Raises:
        UserError: if it is gone, or its name is not text.
    """
    try:
        folder = os.getcwd()
    except OSError as error:
        raise UserError(
            f"expected a current folder that is there, got none ({error.strerror}); change to one with cd"
        ) from None
    refuse_undecoded([folder])
    return folder


def refuse_little_memory() -> None:
    """Refuse an address space in which torch, NumPy and SciPy cannot even be loaded.

    OpenBLAS does not fail there: it ends the process, or waits for ever for threads that never began.

    Raises:
        UserError: with the limit and the least that is needed.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    given = next((os.environ[name] for name in _THREADS if os.environ.get(name, "").isdigit()), None)
    threads = min(len(os.sched_getaffinity(0)) if given is None else max(1, int(given)), _MOST_THREADS)
    least = _LEAST_BYTES + _THREAD_BYTES * threads
    if limit != resource.RLIM_INFINITY and limit < least:
        raise UserError(
            f"expected an address space of at least {least // 1024:,} kB, got {limit // 1024:,} kB; raise it "
            "with 'ulimit -v', or set OMP_NUM_THREADS=1 for fewer threads"
        )


def refuse_ranks(what: str) -> None:
    """Refuse what runs in one process, where a launcher such as torchrun has started several.

    Raises:
        UserError: with the number of processes.
    """
    ranks = os.environ.get("WORLD_SIZE", "")
    if ranks.isdigit() and int(ranks) > 1:
        raise UserError(
            f"{what}: expected one process, got {ranks} (WORLD_SIZE); start it without torchrun, which can "
            "train one run, evaluate and compare"
        )


def refuse_undecoded(words: Sequence[str]) -> None:
    """Refuse names that are not text: YAML, JSON and TensorBoard cannot hold them.

    Raises:
        UserError: with the first of them.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"expected names in UTF-8, got {word!a:.200}; rename it, or take another"
            ) from None


def message_of(error: BaseException) -> str | None:
    """Return what to say of an error that is the user's or the machine's; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if (said := _said_of_scarcity(error)) is not None:
        return said
    if isinstance(error, OSError):
        names = " and ".join(repr(name) for name in (error.filename, error.filename2) if name is not None)
        place = f" ({names:.300})" if names else ""
        return f"the system refused: {error.strerror or error}{place}; see 'ulimit -a' and 'df' for limits"
    return None


def _said_of_scarcity(error: BaseException) -> str | None:
    """Return what ran out, if files, threads or memory did, and the line of a library that says so."""
    lines = [
        line.strip() for each in _chain(error) if isinstance(each, _KINDS) for line in str(each).split("\n")
    ]
    for pattern, advice in _SCARCE.items():
        if (line := next(filter(pattern.search, lines), None)) is not None:
            return f"{advice} ({line:.200})"
    return f"{advice} ({lines[0] or 'MemoryError':.200})" if isinstance(error, MemoryError) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
