"""What the machine could do: its matrix product, its copy; and how much memory is in use."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

_SIZE = {"cpu": 2048, "cuda": 8192}
_COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes: more than any cache holds
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peaks(NamedTuple):
    """What the machine could do at this moment.

    Attributes:
        product: floating-point operations a second of torch's square matrix product.
        onednn: of the same in oneDNN, whose kernels torch's recurrent layers are made of on a CPU; where
            that is not there, as ``product``.
        copy: bytes a second, read and written, of copying what no cache holds.
    """

    product: float
    onednn: float
    copy: float

    @property
    def best(self) -> float:
        """The faster of the two products: what a fraction is taken of."""
        return max(self.product, self.onednn)


def peaks(device: torch.device) -> Peaks:
    """Measure, for about half a second, in float32 at the precision that is set."""
    size = _SIZE[device.type]
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)
    product = 2 * size**3 / median_seconds(lambda: torch.mm(a, b, out=out), device)
    onednn = product
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        x, w = a.to_mkldnn(), b.to_mkldnn()
        onednn = 2 * size**3 / median_seconds(lambda: F.linear(x, w), device)
    source = torch.ones(_COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return Peaks(product, onednn, 2 * 4 * len(source) / median_seconds(lambda: target.copy_(source), device))


def median_seconds(work: Callable[[], object], device: torch.device, seconds: float = 0.15) -> float:
    """Return the median of the seconds that ``work`` takes, repeated for ``seconds``."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < 4 or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        finish(device)
        taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


def finish(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(work: Callable[[], object], device: torch.device) -> int | None:
    """Return the bytes that were in use at once beyond those at the start, or None where none can tell.

    On a GPU what tensors took, on Linux what the process had in main memory.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed must not count, nor be taken without counting
        before = _in_main_memory("VmRSS")
        _RESET.write_text("5")
    except (AttributeError, OSError, TypeError):
        work()
        return None
    work()
    return _in_main_memory("VmHWM") - before


def _in_main_memory(field: str) -> int:
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])
