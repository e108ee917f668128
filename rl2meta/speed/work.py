"""How much work a piece of a program is, counted while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Work(NamedTuple):
    """The work of one environment step.

    Attributes:
        flops: floating-point operations of matrix products; elementwise ones are left out.
        moved: about how many bytes torch's operations read and wrote, one by one, as if nothing were cached:
            those of all tensors that they took and gave.
    """

    flops: float
    moved: float


def work_of(unit: Callable[[], int]) -> Work:
    """Run ``unit`` once and count, per environment step that it returns.

    Fused recurrent layers cannot be looked into; while this counts they are taken apart, into the same
    products (less that of the gradient of their input, which nobody asks for).
    """
    with _fused_layers_apart(), FlopCounterMode(display=False) as flops, _Moved() as moved:
        steps = unit()
    return Work(flops.get_total_flops() / steps, moved.total / steps)


_MOVE_NOTHING = ("empty", "new_empty", "_unsafe_view")


class _Moved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that operations take and give; views move nothing."""

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
    enabled = [backend.enabled for backend in backends]
    for backend in backends:
        setattr(backend, "enabled", False)  # noqa: B010  (typed as the property that it is on the class)
    try:
        yield
    finally:
        for backend, was in zip(backends, enabled, strict=True):
            setattr(backend, "enabled", was)  # noqa: B010
