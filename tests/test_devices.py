"""What is asked of the machine before a run: devices, and how the C library keeps memory."""

import ctypes
import subprocess
import sys

import pytest
import torch

from rl2meta.devices import Precision, set_precision
from rl2meta.memory import keep_memory

FAULTS = """
import os, resource, torch
from rl2meta.memory import keep_memory

def allocate(times):
    for _ in range(times):
        torch.ones(64 * 2**20 // 4)

for wanted in (True, False):
    if not os.fork():
        kept = wanted and keep_memory()
        allocate(40 * kept)  # what is kept has to be had first; glibc's caches take a while to settle
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        allocate(10)
        print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts Linux's page faults")
def test_memory_that_is_kept_is_not_filled_with_zeros_again() -> None:
    said = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    kept, few, _, many = said.stdout.split()
    if kept == "False":
        pytest.skip("this C library cannot be told to keep memory")
    assert int(many) >= 100  # ten times 64 MiB, even where pages are huge
    assert int(few) < int(many) / 10


class _Library:
    """A C library whose mallopt answers so, and remembers what it was told."""

    def __init__(self, *answers: int) -> None:
        self.told: list[tuple[int, int]] = []
        self._answers = iter(answers)

    def mallopt(self, parameter: int, value: int) -> int:
        self.told.append((parameter, value))
        return next(self._answers)


@pytest.mark.parametrize(("answers", "kept"), [((1, 1), True), ((1, 0), False), ((0, 1), False)])
def test_memory_is_kept_where_the_c_library_takes_both_settings(
    answers: tuple[int, int], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = _Library(*answers)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert keep_memory() is kept
    both = {(-4, 0), (-1, -1)}
    assert set(library.told) == (
        both if answers[0] else {(-4, 0)}
    )  # malloc.h: nothing by mmap, nothing trimmed


@pytest.mark.parametrize("fault", [AttributeError, OSError, TypeError])
def test_memory_is_not_kept_where_the_c_library_cannot_be_told(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: None) -> object:
        if fault is AttributeError:  # musl, and macOS: a library without mallopt
            return object()
        raise fault  # none to be had; and Windows, where None is no name of one

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert keep_memory() is False


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_glibc_can_be_told() -> None:
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("not glibc")
    assert keep_memory() is True


@pytest.mark.parametrize("precision", ["tf32", "float32"])
def test_precision_is_that_of_all_products_and_others_can_still_ask(precision: Precision) -> None:
    set_precision(precision)
    rounded = precision == "tf32"
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is rounded
    assert torch.get_float32_matmul_precision() == ("high" if rounded else "highest")
    with torch.backends.cudnn.flags(enabled=True):  # raises where old and new flags are mixed
        pass


DENORMAL = """
import numpy as np, torch, rl2meta
from rl2meta.divided import divided

def counted(many):
    return (torch.full((many,), 1e-40) * 1).count_nonzero().item()

def look(run, row):
    found.append(counted(10**6))  # on torch's two threads
    divided(lambda part, number: found.append((np.full(3, 1e-40, np.float32) * part[1]).sum()), [(0, 1)] * 2)

found = []
little = ["training.updates=1", "training.trials_per_update=4", "threads=2", "device=cpu"]
rl2meta.train("smoke", little, callbacks=[look])
assert found == [0, 0, 0], found
assert counted(10) == 10  # after it the program has its numbers back
"""


def test_a_training_flushes_denormal_numbers_in_all_threads() -> None:
    before = float(torch.tensor(1e-40) * 1) == 0
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    torch.set_flush_denormal(before)
    subprocess.run([sys.executable, "-W", "error", "-c", DENORMAL], check=True)
