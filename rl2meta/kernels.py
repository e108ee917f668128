"""Chooses whether torch's operations or kernels that Numba compiles compute on a CPU.

Both compute the same functions, and round differently. So the choice is a setting of a run, which stands in
its config.yaml like the device and the threads. Whoever has no kernel for what is asked uses torch.
Both flush denormal numbers while a training lasts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rl2meta.errors import UserError

Kernels = Literal["torch", "compiled"]
_LONG = 2**19  # environment steps from which a training wins more than importing Numba and compiling take
_chosen: list[Kernels] = ["torch"]
_weights_fixed: ContextVar[bool] = ContextVar("weights_fixed", default=False)
_threads: list[int] = []  # those of the kernels, where torch has but one


def resolve_kernels(name: Kernels | None, device: torch.device, steps: int = _LONG) -> Kernels:
    """Return which kernels a training uses; None: compiled ones on a CPU, if it is long and Numba is there.

    Args:
        name: as in a config.
        device: of the training.
        steps: the most environment steps that it takes; 0: compiled kernels would compute little of it.

    Raises:
        UserError: if compiled ones are asked for where there are none; torch does not silently replace them.
    """
    if name == "torch" or (name is None and (device.type != "cpu" or steps < _LONG)):
        return "torch"
    missing = _missing(device)
    if name is None:
        return "torch" if missing else "compiled"
    if missing:
        raise UserError(
            f"kernels: expected {missing} for compiled ones; set kernels=torch for a new run. A run that "
            "began with compiled kernels goes on only with them, because torch rounds differently"
        )
    return name


def set_kernels(kernels: Kernels) -> None:
    """Let the agents of this process compute by ``kernels`` from here on; at first it is torch."""
    _chosen[0] = kernels


def chosen() -> Kernels:
    """Return what agents of this process compute by."""
    return _chosen[0]


@contextmanager
def kernels_restored() -> Iterator[None]:
    """Choose again, at the end of ``with``, what was chosen at its start."""
    before = chosen()
    try:
        yield
    finally:
        set_kernels(before)


def flush_denormals() -> None:
    """Let this thread, and those that it starts, take numbers below 1.2e-38 for 0, if the processor can."""
    for kind in (np.float16, np.float32, np.float64):
        np.finfo(kind)  # looks at its smallest number now; later it would warn that it is 0
    torch.set_flush_denormal(True)


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Flush denormal numbers inside ``with``; a thread that is started there flushes them for good.

    Gradients become so small on their way back through a hundred steps, and a processor takes many times as
    long for such numbers: updates of recurrent agents took four times as long after a third of a training.
    """
    flushed = float(torch.tensor(1e-40) * 1) == 0
    flush_denormals()
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


def compiled(x: Tensor) -> bool:
    """Return whether compiled kernels compute with ``x``: if they are chosen, on a CPU, in float32."""
    return _chosen[0] == "compiled" and x.device.type == "cpu" and x.dtype == torch.float32


@contextmanager
def threads_to_kernels(wanted: bool) -> Iterator[None]:
    """Inside ``with``, give torch's threads to compiled kernels, and one to torch.

    What torch then still computes is small: its threads would wait for each other longer than they compute.

    Args:
        wanted: whether kernels compute what takes long; else nothing changes.
    """
    before, there = torch.get_num_threads(), list(_threads)
    if not wanted or _chosen[0] != "compiled" or before == 1:
        yield
        return
    _threads[:] = [before]
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _threads[:] = there


def threads() -> int:
    """Return among how many threads a kernel divides its work."""
    return _threads[0] if _threads else torch.get_num_threads()


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Inside ``with``, promise that nobody uses gradients by weights, so kernels need not compute them.

    Kernels then compute only gradients by that in which the graph is linear: a node of torch cannot know
    which of its gradients will be used.
    """
    token = _weights_fixed.set(True)
    try:
        yield
    finally:
        _weights_fixed.reset(token)


def weights_are_fixed() -> bool:
    """Return whether nobody uses gradients by weights."""
    return _weights_fixed.get()


def flat(tensor: Tensor) -> Any:
    """Return the numbers of a tensor as a kernel reads them, in one axis; a copy only if they are apart."""
    return tensor.detach().contiguous().numpy().reshape(-1)


def empty(size: int) -> Any:
    """Return an array for what only kernels read; torch's tensors take longer to make."""
    return np.empty(size, np.float32)


def kept_on_disk(function: Callable[..., Any], *others: ModuleType) -> Callable[..., Any]:
    """Let Numba compile a function at its first call, and keep the result where it finds a folder for it.

    It runs without Python's lock. Where what was kept is damaged, or the disk refuses it, this process
    compiles for itself.

    Args:
        function: what it compiles.
        others: the modules besides its own and ``rl2meta.vectors`` that hold what is compiled with it. A
            change of any other file would not be seen.
    """
    from numba import njit

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        kept = njit(cache=True, **options)(function)
        index = kept._cache._cache_file  # Numba itself looks at the function's own file alone
        files = [Path(__file__).with_name("vectors.py"), *(Path(str(other.__file__)) for other in others)]
        index._source_stamp = (index._source_stamp, *map(_stamp, files))
    except (RuntimeError, OSError, AttributeError):  # no folder can be written to, or another Numba
        kept = njit(**options)(function)
    used = [kept]

    @wraps(function)
    def kernel(*given: Any) -> Any:
        try:
            return used[0](*given)
        except MemoryError:  # some of it ran
            raise
        except Exception:  # Numba lets all through that reading and writing its files raises; nothing ran
            with suppress(Exception):
                kept._cache.flush()  # so the next process keeps it again
            used[0] = njit(**options)(function)
        return used[0](*given)

    return kernel


def kept_with(*others: ModuleType) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return ``kept_on_disk`` for functions that call those of other modules; see there."""
    return lambda function: kept_on_disk(function, *others)


def _stamp(file: Path) -> tuple[float, int]:
    """Return what changes with a file: when it was written, and its length."""
    stat = file.stat()
    return stat.st_mtime, stat.st_size


def _missing(device: torch.device) -> str:
    """Return what compiled kernels lack, or ""."""
    if device.type != "cpu":
        return f"a CPU, got device {device}"
    try:
        import_module("numba")
    except (ImportError, OSError) as error:
        return f"Numba (pip install 'rl2meta[fast]'), got {type(error).__name__}: {error},"
    return ""
