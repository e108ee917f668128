"""Counts the operations and the memory traffic of a piece of a program while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from rl2meta.kernels import chosen, set_kernels


class Work(NamedTuple):
    """The work of one environment step.

    Attributes:
        flops: floating-point operations of matrix products; elementwise operations do not count.
        moved: the bytes of all tensors that torch's operations took and returned. This is about what they
            would read and write if nothing were cached.
    """

    flops: float
    moved: float


def work_of(unit: Callable[[], int]) -> Work:
    """Run ``unit`` once, count its work, and return the work of one environment step.

    Nobody can look into a fused recurrent layer. While this function counts, torch runs each such layer as
    single products. These are the same products, except that the gradient of the layer's input is left out
    where nothing needs it.
    """
    with _fused_layers_apart(), FlopCounterMode(display=False) as flops, _Moved() as moved:
        steps = unit()
    return Work(flops.get_total_flops() / steps, moved.total / steps)


_MOVE_NOTHING = ("empty", "new_empty", "_unsafe_view")


class _Moved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that operations take and return; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not func.__name__.startswith(_MOVE_NOTHING):
            self.total += sum(
                each.nbytes for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)
            )
        return out


@contextmanager
def _fused_layers_apart() -> Iterator[None]:
    backends = (torch.backends.mkldnn, torch.backends.cudnn)
    enabled, kernels = [backend.enabled for backend in backends], chosen()
    set_kernels("torch")  # nobody sees what compiled ones do
    for backend in backends:
        setattr(backend, "enabled", False)  # noqa: B010  (typed as the property that it is on the class)
    try:
        yield
    finally:
        set_kernels(kernels)
        for backend, was in zip(backends, enabled, strict=True):
            setattr(backend, "enabled", was)  # noqa: B010
