"""A chain of linear layers with tanh between them by the kernels of ``tanh_kernels``, as operations of torch.

The chain has its own weights for each task. Its derivatives by the weights are operations as well, so
gradients of gradients are those of torch with other roundings:

    y = f(θ)   ∂⟨g, y⟩/∂θ = Jᵀg   ∂⟨v, Jᵀg⟩/∂(g, θ) = J v, H_g v   ∂(⟨a, J v⟩ + ⟨w, H_g v⟩)/∂v = Jᵀa + H_g w

The tasks are divided among torch's number of threads.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

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


def chain(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return y of every row, [N, rows, units].

    Args:
        weights: W [N, units, inputs] and b [N, units] of each layer in turn, float32 on the CPU.
        x: inputs, [N, rows, inputs]; they get no gradient.
    """
    sizes = x.shape[-1], *(bias.shape[-1] for bias in weights[1::2])
    theta = torch.cat([weight.flatten(1) for weight in weights], dim=1)  # [N, all weights of a task]
    given = theta, x.contiguous(), sizes
    if not torch.is_grad_enabled():  # an operation with gradients takes longer to begin than a step of acting
        return _Outputs.forward(*given)[0]
    y: Tensor = _Outputs.apply(*given)[0]  # type: ignore[no-untyped-call]
    return y


class _Outputs(torch.autograd.Function):
    """θ [N, P], x [N, rows, inputs] -> y [N, rows, units], and h of all layers for the derivatives."""

    @staticmethod
    def forward(theta: Tensor, x: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
        y = x.new_empty(*x.shape[:2], wide(sizes[-1]))
        kept = x.new_empty(x.shape[0] * x.shape[1] * sum(map(wide, sizes[1:-1])))
        arrays = *map(flat, (theta, x)), _array(sizes), *map(flat, (y, kept))
        _over_tasks(kernels.forward, arrays, x)
        return y[..., : sizes[-1]], kept

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        theta, x, ctx.sizes = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # zeros for h of all layers take as long as a product
        ctx.save_for_backward(theta, x, output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        theta, x, kept = ctx.saved_tensors
        return _Gradient.apply(theta, g, x, kept, ctx.sizes), None, None  # type: ignore[no-untyped-call]


class _Gradient(torch.autograd.Function):
    """θ, g [N, rows, units] -> Jᵀg [N, P]."""

    @staticmethod
    def forward(theta: Tensor, g: Tensor, x: Tensor, kept: Tensor, sizes: Sizes) -> Tensor:
        found = torch.empty_like(theta)
        arrays = *map(flat, (theta, g, x, kept)), _array(sizes), flat(found)
        _over_tasks(kernels.back, arrays, x)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.sizes = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        theta, g, x, kept = ctx.saved_tensors
        if weights_are_fixed():
            return None, _tangent(theta, v, x, kept, ctx.sizes), None, None, None
        given = theta, g, v, x, kept, ctx.sizes
        y_dot, curved = _Curvature.apply(*given)  # type: ignore[no-untyped-call]
        return curved, y_dot, None, None, None


class _Curvature(torch.autograd.Function):
    """θ, g, v [N, P] -> J v [N, rows, units] and H_g v [N, P]; linear in v, whose gradient alone it gives."""

    @staticmethod
    def forward(
        theta: Tensor, g: Tensor, v: Tensor, x: Tensor, kept: Tensor, sizes: Sizes
    ) -> tuple[Tensor, Tensor]:
        return _curved(theta, g, v, None, x, kept, sizes)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        theta, g, _, x, kept, ctx.sizes = inputs
        ctx.save_for_backward(theta, g, x, kept)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor, w: Tensor) -> tuple[Tensor | None, ...]:
        if not weights_are_fixed():
            raise RuntimeError(
                "expected at most second derivatives by the weights, got a third one, which compiled kernels "
                "do not compute; use rl2meta.kernels.set_kernels('torch')"
            )
        theta, g, x, kept = ctx.saved_tensors
        return None, None, _curved(theta, g, w, a, x, kept, ctx.sizes)[1], None, None, None


def _tangent(theta: Tensor, v: Tensor, x: Tensor, kept: Tensor, sizes: Sizes) -> Tensor:
    """Return J v, [N, rows, units]."""
    y_dot = x.new_empty(*x.shape[:2], wide(sizes[-1]))
    arrays = *map(flat, (theta, x, kept, v)), _array(sizes), flat(y_dot)
    _over_tasks(kernels.tangent, arrays, x)
    return y_dot[..., : sizes[-1]]


def _curved(
    theta: Tensor, g: Tensor, v: Tensor, a: Tensor | None, x: Tensor, kept: Tensor, sizes: Sizes
) -> tuple[Tensor, Tensor]:
    """Return J v, [N, rows, units], and H_g v + Jᵀa, [N, P]."""
    y_dot, found = x.new_empty(*x.shape[:2], wide(sizes[-1])), torch.empty_like(theta)
    a = x.new_empty(0) if a is None else a
    arrays = *map(flat, (theta, g, x, kept, v, a)), _array(sizes), *map(flat, (y_dot, found))
    _over_tasks(kernels.curved, arrays, x)
    return y_dot[..., : sizes[-1]], found


@cache
def _array(sizes: Sizes) -> Any:
    return np.array(sizes, np.int64)


def _over_tasks(kernel: Any, arrays: tuple[Any, ...], x: Tensor) -> None:
    """Call a kernel for each thread's part of the tasks."""
    tasks, rows = x.shape[:2]

    def some(part: Part, _: int) -> None:
        kernel(*arrays, tasks, rows, part)

    divided(some, equal_parts(tasks, tasks * rows // _ROWS_OF_A_THREAD))
