"""A chain of linear layers with tanh between them by the kernels of ``tanh_kernels``, as operations of torch.

The chain has its own weights for each task. Its derivatives by the weights are operations as well, so
gradients of gradients are those of torch with other roundings:

    y = f(θ)   ∂⟨g, y⟩/∂θ = Jᵀg   ∂⟨v, Jᵀg⟩/∂(g, θ) = J v, H_g v   ∂(⟨a, J v⟩ + ⟨w, H_g v⟩)/∂v = Jᵀa + H_g w

The tasks are divided among torch's number of threads.
"""

import operator
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl2meta import tanh_kernels as kernels
from rl2meta.divided import Part, divided, equal_parts
from rl2meta.kernels import flat, weights_are_fixed
from rl2meta.vectors import wide

Sizes = tuple[int, ...]
"""Length of the input, and units of each layer."""
_ROWS_OF_A_THREAD = 1024  # with fewer, all tasks counted, a thread waits longer than it computes
_MOST_KEPT = 2**24  # numbers of weights that stay packed while an agent acts


def chain(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return y of every row, [N, rows, units].

    Args:
        weights: W [N, units, inputs] and b [N, units] of each layer in turn, float32 on the CPU.
        x: inputs, [N, rows, inputs]; they get no gradient.

    Raises:
        ValueError: if shapes or dtypes do not fit together: a kernel would read what lies beside an array.
    """
    sizes = x.shape[-1], *(bias.shape[-1] for bias in weights[1::2])
    _refuse_unfit(weights, x, sizes)
    if not torch.is_grad_enabled():  # an operation with gradients takes longer to begin than a step of acting
        return _only_outputs(x, _packed_once(weights, sizes), sizes)
    y: Tensor = _Outputs.apply(x.contiguous(), sizes, *weights)[0]  # type: ignore[no-untyped-call]
    return y


class _Outputs(torch.autograd.Function):
    """x [N, rows, inputs] and the weights -> y [N, rows, units]; for derivatives h and packed weights."""

    @staticmethod
    def forward(x: Tensor, sizes: Sizes, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed = _packed(weights, sizes)
        return *_run(x, packed, sizes), packed

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.sizes, *weights = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # zeros for h of all layers take as long as a product
        ctx.save_for_backward(x, *output[1:], *weights)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        x, kept, packed, *weights = ctx.saved_tensors
        if g is None:
            return (None,) * (2 + len(weights))
        given = g, x, kept, packed, ctx.sizes, *weights
        return None, None, *_Gradient.apply(*given)  # type: ignore[no-untyped-call]


class _Gradient(torch.autograd.Function):
    """g [N, rows, units] and the weights -> Jᵀg, in the shapes of the weights."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, kept: Tensor, packed: Tensor, sizes: Sizes, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        found = _like(weights)
        arrays = *map(flat, (packed, g, x, kept)), _array(sizes), flat(found)
        _over_tasks(kernels.back, arrays, x)
        return _apart(found, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *first, ctx.sizes = inputs[:5]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*first, *inputs[5:])

    @staticmethod
    def backward(ctx: Any, *v: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, kept, packed, *weights = ctx.saved_tensors
        whole = [torch.zeros_like(w) if each is None else each for each, w in zip(v, weights, strict=True)]
        if weights_are_fixed() and not torch.is_grad_enabled():
            return _tangent(whole, x, kept, packed, ctx.sizes), *[None] * (4 + len(weights))
        given = g, x, kept, packed, ctx.sizes, *weights, *whole
        y_dot, *curved = _Curvature.apply(*given)  # type: ignore[no-untyped-call]
        return y_dot, *[None] * 4, *curved


class _Curvature(torch.autograd.Function):
    """g, the weights, and v like them -> J v [N, rows, units], and H_g v like the weights; linear in v."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, kept: Tensor, packed: Tensor, sizes: Sizes, *weights_and_v: Tensor
    ) -> tuple[Tensor, ...]:
        v = weights_and_v[len(weights_and_v) // 2 :]
        y_dot, found = _curved(g, v, None, x, kept, packed, sizes)
        return y_dot, *_apart(found, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *first, ctx.sizes = inputs[:5]
        ctx.save_for_backward(*first, *inputs[5 : (len(inputs) + 5) // 2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor, *w: Tensor) -> tuple[Tensor | None, ...]:
        if not weights_are_fixed():
            raise RuntimeError(
                "expected at most second derivatives by the weights, got a third one, which compiled kernels "
                "do not compute; use rl2meta.kernels.set_kernels('torch')"
            )
        g, x, kept, packed, *weights = ctx.saved_tensors
        _, found = _curved(g, w, a, x, kept, packed, ctx.sizes)
        return *[None] * (5 + len(weights)), *_apart(found, weights)


def _run(x: Tensor, packed: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Return y, [N, rows, units], and h of all hidden layers."""
    y, kept = _wide_rows(x, sizes), x.new_empty(x.shape[0] * x.shape[1] * sum(map(wide, sizes[1:-1])))
    arrays = *map(flat, (packed, x)), _array(sizes), *map(flat, (y, kept))
    _over_tasks(kernels.forward, arrays, x)
    return y[..., : sizes[-1]], kept


def _only_outputs(x: Tensor, packed: Tensor, sizes: Sizes) -> Tensor:
    """Return y, [N, rows, units]."""
    y = _wide_rows(x, sizes)
    _over_tasks(kernels.outputs, (*map(flat, (packed, x)), _array(sizes), flat(y)), x)
    return y[..., : sizes[-1]]


def _tangent(v: Sequence[Tensor], x: Tensor, kept: Tensor, packed: Tensor, sizes: Sizes) -> Tensor:
    """Return J v, [N, rows, units]."""
    y_dot = _wide_rows(x, sizes)
    arrays = *map(flat, (packed, x, kept, _together(v))), _array(sizes), flat(y_dot)
    _over_tasks(kernels.tangent, arrays, x)
    return y_dot[..., : sizes[-1]]


def _curved(
    g: Tensor, v: Sequence[Tensor], a: Tensor | None, x: Tensor, kept: Tensor, packed: Tensor, sizes: Sizes
) -> tuple[Tensor, Tensor]:
    """Return J v, [N, rows, units], and H_g v + Jᵀa, [N, all weights of a task]."""
    y_dot, found = _wide_rows(x, sizes), _like(v)
    a = x.new_empty(0) if a is None else a
    arrays = *map(flat, (packed, g, x, kept, _together(v), a)), _array(sizes), *map(flat, (y_dot, found))
    _over_tasks(kernels.curved, arrays, x)
    return y_dot[..., : sizes[-1]], found


def _packed(weights: Sequence[Tensor], sizes: Sizes) -> Tensor:
    """Return the weights as the kernels read them, [N, ·]."""
    theta, length = _together(weights), kernels.packed_size(_array(sizes))
    packed = theta.new_zeros(len(theta), length)
    kernels.pack(flat(theta), _array(sizes), flat(packed), len(theta))
    return packed


class _Last(NamedTuple):
    """The weights that acted last, their versions, and what they were packed to."""

    weights: list[Tensor]
    versions: list[int]
    packed: Tensor


_last: list[_Last] = []


def _packed_once(weights: Sequence[Tensor], sizes: Sizes) -> Tensor:
    """Do what ``_packed`` does, but not again for the same weights: an agent acts with them many times."""
    if weights[0].is_inference() or sum(each.numel() for each in weights) > _MOST_KEPT:
        return _packed(weights, sizes)
    # A fused optimiser changes no version, but what acts are tensors that each trial makes anew.
    versions = [each._version for each in weights]
    for last in _last:
        if last.versions == versions and all(map(operator.is_, last.weights, weights)):
            return last.packed
    found = _Last(list(weights), versions, _packed(weights, sizes))
    _last[:] = [found]
    return found.packed


def _refuse_unfit(weights: Sequence[Tensor], x: Tensor, sizes: Sizes) -> None:
    layers = [each for into, out in pairwise(sizes) for each in ((len(x), out, into), (len(x), out))]
    shapes = [tuple(each.shape) for each in weights]
    if shapes != layers or {each.dtype for each in (x, *weights)} != {torch.float32}:
        raise ValueError(
            f"expected float32 weights of shapes {layers} for inputs {tuple(x.shape)}, got "
            f"{', '.join(f'{each.dtype} {tuple(each.shape)}' for each in weights)}"
        )


def _together(parts: Sequence[Tensor]) -> Tensor:
    """[N, ...] each -> [N, all numbers of a task]."""
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _apart(together: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """[N, all numbers of a task] -> [N, ...] each, in the shapes of ``like``."""
    parts = torch.split(together, [each.shape[1:].numel() for each in like], dim=1)
    return tuple(part.view_as(each) for part, each in zip(parts, like, strict=True))


def _like(parts: Sequence[Tensor]) -> Tensor:
    """Return memory for tensors like the parts, [N, all numbers of a task]."""
    return parts[0].new_empty(len(parts[0]), sum(each.shape[1:].numel() for each in parts))


def _wide_rows(x: Tensor, sizes: Sizes) -> Tensor:
    """Return memory for whole vectors of outputs, [N, rows, P]."""
    return x.new_empty(*x.shape[:2], wide(sizes[-1]))


@cache
def _array(sizes: Sizes) -> Any:
    return np.array(sizes, np.int64)


def _over_tasks(kernel: Any, arrays: tuple[Any, ...], x: Tensor) -> None:
    """Call a kernel for each thread's part of the tasks."""
    tasks, rows = x.shape[:2]

    def some(part: Part, _: int) -> None:
        kernel(*arrays, tasks, rows, part)

    divided(some, equal_parts(tasks, tasks * rows // _ROWS_OF_A_THREAD))
