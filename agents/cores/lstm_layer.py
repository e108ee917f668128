"""A layer of an LSTM by the kernels of ``lstm_kernels``, as operations of torch.

They compute what ``torch.nn.LSTM`` computes, with other roundings. The trials are divided among torch's
number of threads; a kernel does all steps of its trials in one call without Python's lock.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from rl2meta.agents.cores import lstm_kernels as kernels
from rl2meta.divided import Part, divided, equal_parts
from rl2meta.kernels import flat
from rl2meta.vectors import wide

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
    packed, bias, inputs, hidden = _packed(weights)
    state = [_widened(each, hidden) for each in before]
    new_h, new_c = (x.new_empty(rows, hidden) for _ in range(2))
    arrays = flat(x), packed, bias, *map(flat, state), flat(new_h), flat(new_c)
    divided(lambda part, _: kernels.step(*arrays, part, (rows, inputs, hidden)), _parts(rows, 1))
    return new_h[:, :units], new_c[:, :units]


class _Unroll(torch.autograd.Function):
    """x [T, B, inputs] and the weights -> h [T, B, H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        packed, bias, inputs, hidden = _packed(weights)
        steps, rows, _ = x.shape
        sizes = rows, inputs, hidden
        x, h = x.contiguous(), x.new_empty(steps, rows, hidden)
        c, slopes, gates = (x.new_empty(steps * rows * hidden * each) for each in (1, 1, 4))
        arrays = flat(x), packed, bias, *map(flat, (h, c, gates, slopes))
        divided(lambda part, _: kernels.forward(*arrays, part, steps, sizes), _parts(rows, steps))
        ctx.save_for_backward(x, *weights[:2], h, c, gates, slopes)
        ctx.sizes, ctx.spent = sizes, False
        return h[..., : weights[1].shape[1]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        (x, w, u, h, c, gates, slopes), (rows, inputs, hidden) = ctx.saved_tensors, ctx.sizes
        if ctx.spent:
            raise RuntimeError(
                "expected one backward pass, got a second: the first writes over what it reads"
            )
        ctx.spent, steps = True, len(x)
        wanted = ctx.needs_input_grad[0]
        w_back = _packed_back(w, hidden) if wanted else flat(x.new_empty(0))
        d_x = x.new_empty(steps, rows, wide(inputs) if wanted else 0)
        read = *map(flat, (_widened(d_y, hidden), x, h, c, gates, slopes)), _packed_back(u, hidden), w_back
        parts, work = _parts(rows, steps), flat(x.new_empty(2 * rows * hidden))
        d_packed = flat(x.new_zeros(len(parts) * 4 * hidden * (inputs + hidden)))
        d_bias = flat(x.new_zeros(len(parts) * 4 * hidden))
        arrays = *read, flat(d_x), d_packed, d_bias, work
        divided(lambda part, number: kernels.backward(*arrays, part, number, steps, ctx.sizes), parts)
        found = torch.empty_like(w), torch.empty_like(u), w.new_empty(len(w))
        kernels.unpack(d_packed, d_bias, *map(flat, found), len(parts), inputs, u.shape[1], hidden)
        return d_x[..., :inputs] if wanted else None, *found, found[-1]


def _packed(weights: Sequence[Tensor]) -> tuple[Any, Any, int, int]:
    """Return weights and bias as the kernels read them, the number of inputs, and that of units."""
    w, u = weights[:2]
    inputs, units = w.shape[1], u.shape[1]
    hidden = wide(units)
    packed, bias = (flat(w.new_empty(4 * hidden * each)) for each in (inputs + hidden, 1))
    kernels.pack(*map(flat, weights), packed, bias, inputs, units, hidden)
    return packed, bias, inputs, hidden


def _packed_back(weight: Tensor, hidden: int) -> Any:
    """Return the panels of W or U for the way back."""
    columns = weight.shape[1]
    panels = flat(weight.new_empty(4 * hidden * wide(columns)))
    kernels.pack_back(flat(weight), panels, columns, len(weight) // 4, hidden)
    return panels


def _widened(x: Tensor, width: int) -> Tensor:
    """Add zeros, [..., H] -> [..., width]."""
    return x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1]))


def _parts(rows: int, steps: int) -> list[Part]:
    """Return the trials of each thread."""
    return equal_parts(rows, rows * steps // _STEPS_OF_A_THREAD)
