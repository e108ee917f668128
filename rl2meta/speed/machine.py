"""What the machine can do at a moment, how long work takes, and how much memory it uses."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

_SIZE = {"cpu": 2048, "cuda": 8192}
_COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes: more than any cache holds
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Where Linux says how much memory the process uses; and where it forgets the peak so far."""


class Peaks(NamedTuple):
    """What the machine could do when it was measured.

    Attributes:
        product: floating-point operations per second of torch's square matrix product.
        onednn: the same of oneDNN's product, whose kernels torch's recurrent layers use on a CPU; equal to
            ``product`` where oneDNN is not available.
        copy: bytes per second, read and written, of a copy that is larger than any cache.
    """

    product: float
    onednn: float
    copy: float

    @property
    def best(self) -> float:
        """The speed of the faster product, which fractions refer to."""
        return max(self.product, self.onednn)


def median_seconds(work: Callable[[], object], device: torch.device, seconds: float = 0.15) -> float:
    """Return the median of the seconds that ``work`` takes, repeated for ``seconds`` and at least 4 times."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < 4 or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        finish(device)
        taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


def peaks(
    device: torch.device,
    *,
    size: int | None = None,
    copied: int | None = None,
    timed: Callable[[Callable[[], object], torch.device], float] = median_seconds,
) -> Peaks:
    """Measure the machine for about half a second, in float32 at the precision that is set.

    Args:
        device: what is measured.
        size: rows and columns of the matrices; None for 2,048 on a CPU and 8,192 on a GPU.
        copied: bytes that are copied; None for 64 MiB on a CPU and 1 GiB on a GPU.
        timed: returns the seconds that a piece of work takes on the device.
    """
    size = _SIZE[device.type] if size is None else size
    copied = _COPIED[device.type] if copied is None else copied
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)
    product = 2 * size**3 / timed(lambda: torch.mm(a, b, out=out), device)
    onednn = product
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        x, w = a.to_mkldnn(), b.to_mkldnn()
        onednn = 2 * size**3 / timed(lambda: F.linear(x, w), device)
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)
    return Peaks(product, onednn, 2 * 4 * len(source) / timed(lambda: target.copy_(source), device))


def finish(device: torch.device) -> None:
    """Wait until a GPU has done all its work; do nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(
    work: Callable[[], object], device: torch.device, *, status: Path = STATUS, reset: Path = RESET
) -> int | None:
    """Do ``work`` and return the most bytes that were in use at once, beyond those in use at its start.

    On a GPU these are the bytes of tensors; on Linux they are the process's bytes in main memory.

    Args:
        work: is done once, whether its memory can be measured or not.
        device: where the work is done.
        status: the file in which Linux says how much memory the process uses.
        reset: the file that makes Linux forget the peak so far.

    Returns:
        The bytes, or None where the system cannot tell them.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    try:
        # Otherwise freed memory would count, or work could take it again without being counted.
        ctypes.CDLL(None).malloc_trim(0)
        before = _in_main_memory(status, "VmRSS")
        reset.write_text("5")
    except (AttributeError, OSError, TypeError):
        work()
        return None
    work()
    return _in_main_memory(status, "VmHWM") - before


def _in_main_memory(status: Path, field: str) -> int:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])
