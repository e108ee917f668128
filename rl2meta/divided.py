"""Divides the work of a compiled kernel among threads, which run it without Python's lock."""

import os
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from queue import SimpleQueue
from threading import Thread

from rl2meta.kernels import flush_denormals, threads

Part = tuple[int, int]
"""The first and the one behind the last, of trials or tasks."""
Kernel = Callable[[Part, int], None]
"""Computes a part, given with its number."""
Given = tuple[Kernel, Part, int, SimpleQueue[BaseException | None]]
"""What a thread is to compute, and where it says that it is done, with what went wrong."""


def equal_parts(number: int, worth: int) -> list[Part]:
    """Return as many parts of ``number`` as there are threads, but at most ``worth``."""
    parts = max(1, min(threads(), number, worth))
    ends = [number * each // parts for each in range(parts + 1)]
    return list(pairwise(ends))


def divided(kernel: Kernel, parts: Sequence[Part]) -> None:
    """Call ``kernel`` for each part with its number, side by side."""
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    for number in range(1, len(parts)):
        _helper(os.getpid(), number).put((kernel, parts[number], number, ended))
    try:
        kernel(parts[0], 0)
    finally:
        faults = [ended.get() for _ in parts[1:]]
    for fault in faults:
        if fault is not None:
            raise fault


@cache
def _helper(process: int, number: int) -> SimpleQueue[Given]:
    """Start a thread, and return where it takes its work; a pool of threads takes longer to hand it over.

    Threads stay in their process, so each process that forked has its own.
    """
    given: SimpleQueue[Given] = SimpleQueue()
    Thread(target=_work, args=(given,), name=f"kernels-{number}", daemon=True).start()
    return given


def _work(given: SimpleQueue[Given]) -> None:
    flush_denormals()  # also if the thread that began this one does not yet
    while True:
        kernel, part, number, ended = given.get()
        fault = None
        try:
            kernel(part, number)
        except BaseException as error:
            fault = error
        del kernel  # it holds the arrays
        ended.put(fault)
