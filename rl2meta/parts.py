"""Divide tasks into parts that fit in memory; only this module decides their sizes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

MOST_NUMBERS = 2**27
"""Maximum count of numbers in a part: half a gigabyte in float32."""
_ALIGNED = 16
_LIMIT: ContextVar[int | None] = ContextVar("limit", default=None)


def in_parts(
    num_tasks: int, numbers_per_task: int, most_numbers: int = MOST_NUMBERS, multiple_of: int = _ALIGNED
) -> list[slice]:
    """Divide tasks into as few parts as memory allows, with about the same number of tasks in each.

    This serves work on each task alone, whose results are concatenated; the parts change no digit of them.
    The rounding of matrix products depends on the memory address of a matrix. So the sizes of parts are
    multiples of 16 tasks, and every tensor has the same alignment as without parts. (If memory holds less
    than 16 tasks, the last bit of a product may differ.)

    Args:
        num_tasks: N >= 0.
        numbers_per_task: approximately how many numbers the work on a task holds at once, >= 1.
        most_numbers: maximum count of numbers in a part; a part of a single task may exceed it.
        multiple_of: the size of every part except the last is a multiple of this; ignored if it does not fit.

    Returns:
        Slices of range(N), in order; a single empty slice for no tasks.

    Raises:
        ValueError: for numbers that are too small.
    """
    if num_tasks < 0 or min(numbers_per_task, most_numbers, multiple_of) < 1:
        raise ValueError(
            "expected num_tasks >= 0 and numbers_per_task, most_numbers, multiple_of >= 1, got "
            f"{num_tasks}, {numbers_per_task}, {most_numbers}, {multiple_of}"
        )
    limit = _LIMIT.get()
    at_once = max(1, min(most_numbers, limit or most_numbers) // numbers_per_task)
    if num_tasks <= at_once:
        return [slice(0, num_tasks)]
    multiple_of = multiple_of if at_once >= multiple_of else 1
    num_parts = _divided_up(num_tasks, at_once - at_once % multiple_of)
    size = multiple_of * _divided_up(num_tasks, multiple_of * num_parts)
    return [slice(start, min(start + size, num_tasks)) for start in range(0, num_tasks, size)]


@contextmanager
def at_most(numbers: int) -> Iterator[None]:
    """Inside ``with``, limit every part to so many numbers: for a machine with little memory.

    Where a learner adds up the results of parts, the last bits of the sum may change.
    """
    token = _LIMIT.set(numbers)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def _divided_up(number: int, by: int) -> int:
    """Return ⌈number / by⌉."""
    return -(-number // by)
