"""How many tasks are computed at a time: the one place where memory decides it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

MOST_NUMBERS = 2**27
"""Numbers in a part, at most: half a gigabyte in float32."""
_ALIGNED = 16
_LIMIT: ContextVar[int | None] = ContextVar("limit", default=None)


def in_parts(
    num_tasks: int, numbers_per_task: int, most_numbers: int = MOST_NUMBERS, multiple_of: int = _ALIGNED
) -> list[slice]:
    """Return the tasks in as few parts as memory allows, about equally many in each.

    For work that is done for every task on its own, and whose results are put together again: that changes
    no digit. Matrix products are rounded by where in memory a matrix begins, so a part begins 16 tasks after
    another, or a multiple: there every tensor lies as it does in one piece. (Where memory holds fewer than
    16 tasks, the last bit of a product may differ.)

    Args:
        num_tasks: N >= 0.
        numbers_per_task: about how many numbers the work on a task holds at once, >= 1.
        most_numbers: in all tasks of a part; a single task may have more.
        multiple_of: of so many tasks is every part but the last; ignored where not so many fit.

    Returns:
        Slices of range(N), in order; a single empty one for no tasks.

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
    """Let no part hold more than so many numbers, inside ``with``: for a machine with little memory.

    A learner that adds up what its parts come to is rounded otherwise then, in the last bits.
    """
    token = _LIMIT.set(numbers)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def _divided_up(number: int, by: int) -> int:
    """Return ⌈number / by⌉."""
    return -(-number // by)
