"""A layer of an LSTM by the kernels of ``lstm_kernels``, as operations of torch.

They compute what ``torch.nn.LSTM`` computes, with other roundings. The trials are divided among torch's
number of threads; a kernel does all steps of its trials in one call without Python's lock.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl2meta.agents.cores import lstm_kernels as kernels
from rl2meta.divided import Part, divided, equal_parts
from rl2meta.kernels import empty, flat
from rl2meta.vectors import wide, widened

_STEPS_OF_A_THREAD = 512  # with fewer, all trials counted, a thread waits longer than it computes
Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""W [4H, inputs], U [4H, H] and both biases [4H], as ``torch.nn.LSTM`` has them."""


def unroll(x: Tensor, weights: Weights) -> Tensor:
    """Return h of every step of whole trials from a state of zeros, [T, B, H].

    Args:
        x: inputs [T, B, inputs], float32 on the CPU.
        weights: of the layer.
    """
    hidden: Tensor = _Unroll.apply(x, *weights)  # type: ignore[no-untyped-call]
    return hidden


def step(x: Tensor, before: tuple[Tensor, Tensor], *weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state after a step, h and c, [B, H] each, without gradients.

    Args:
        x: inputs, [B, inputs].
        before: the state before it.
        weights: of the layer.
    """
    rows, units = before[0].shape
    packed, bias, inputs, hidden = pack_layer(weights)
    state = [widened(each) for each in before]
    new_h, new_c = (x.new_empty(rows, hidden) for _ in range(2))
    arrays = flat(x), packed, bias, *map(flat, state), flat(new_h), flat(new_c)
    divided(lambda part, _: kernels.step(*arrays, part, (rows, inputs, hidden)), parts_of(rows, 1))
    return new_h[:, :units], new_c[:, :units]


class _Unroll(torch.autograd.Function):
    """x [T, B, inputs] and the weights -> h [T, B, H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        packed, bias, inputs, hidden = pack_layer(weights)
        steps, rows, _ = x.shape
        sizes = rows, inputs, hidden
        h = x.new_empty(steps, rows, hidden)
        c, slopes, gates = (empty(steps * rows * hidden * each) for each in (1, 1, 4))
        read = flat(x), flat(h), c, gates, slopes
        arrays = read[0], packed, bias, *read[1:]
        divided(lambda part, _: kernels.forward(*arrays, part, steps, sizes), parts_of(rows, steps))
        ctx.save_for_backward(x, *weights[:2], h)  # so torch refuses a change of x or h in place
        ctx.sizes, ctx.steps, ctx.read = sizes, steps, read
        return h if hidden == weights[1].shape[1] else h[..., : weights[1].shape[1]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        (_, w, u, _), (rows, inputs, hidden), steps = ctx.saved_tensors, ctx.sizes, ctx.steps
        if ctx.read is None:
            raise RuntimeError(
                "expected one backward pass, got a second: the first writes over what it reads"
            )
        read, ctx.read = ctx.read, None
        wanted = ctx.needs_input_grad[0]
        w_back = _packed_back(w, hidden) if wanted else empty(0)
        d_x = w.new_empty(steps, rows, wide(inputs) if wanted else 0)
        parts, work = parts_of(rows, steps), empty(2 * rows * hidden)
        d_packed = np.zeros(len(parts) * 4 * hidden * (inputs + hidden), np.float32)
        d_bias = np.zeros(len(parts) * 4 * hidden, np.float32)
        panels = _packed_back(u, hidden), w_back
        arrays = flat(widened(d_y)), *read, *panels, flat(d_x), d_packed, d_bias, work
        divided(lambda part, number: kernels.backward(*arrays, part, number, steps, ctx.sizes), parts)
        found = torch.empty_like(w), torch.empty_like(u), w.new_empty(len(w))
        kernels.unpack(d_packed, d_bias, *map(flat, found), len(parts), inputs, u.shape[1], hidden)
        return d_x[..., :inputs] if wanted else None, *found, found[-1]


def pack_layer(weights: Sequence[Tensor]) -> tuple[Any, Any, int, int]:
    """Return weights and bias as the kernels read them, the number of inputs, and that of units."""
    w, u = weights[:2]
    inputs, units = w.shape[1], u.shape[1]
    hidden = wide(units)
    packed, bias = (empty(4 * hidden * each) for each in (inputs + hidden, 1))
    kernels.pack(*map(flat, weights), packed, bias, inputs, units, hidden)
    return packed, bias, inputs, hidden


def packed_both(weights: Sequence[Tensor], wanted: bool) -> tuple[tuple[Any, Any, Any, Any], int]:
    """Return weights, bias and the panels of U and W as the kernels read them, and the number of units.

    Args:
        weights: of the layer.
        wanted: whether the gradient by the inputs is, for which the panels of W are.
    """
    packed, bias, _, hidden = pack_layer(weights)
    w_back = _packed_back(weights[0], hidden) if wanted else empty(0)
    return (packed, bias, _packed_back(weights[1], hidden), w_back), hidden


def _packed_back(weight: Tensor, hidden: int) -> Any:
    """Return the panels of W or U for the way back."""
    columns = weight.shape[1]
    panels = empty(4 * hidden * wide(columns))
    kernels.pack_back(flat(weight), panels, columns, len(weight) // 4, hidden)
    return panels


def parts_of(rows: int, steps: int) -> list[Part]:
    """Return the trials of each thread."""
    return equal_parts(rows, rows * steps // _STEPS_OF_A_THREAD)
