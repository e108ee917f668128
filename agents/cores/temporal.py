"""Causal temporal convolutions: dense blocks whose dilations double, over whole trials or one step at a time.

Sources: Mishra et al. 2018 (arXiv 1707.03141), section 3; dilated causal convolutions with gates are those of
van den Oord et al. 2016 (arXiv 1609.03499), section 2.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

Past = tuple[tuple[Tensor, ...], ...]
"""For each layer of dilation R, what its newest R steps contribute R steps later, [B, 2·filters] each."""


class TemporalConvolutions(nn.Module):
    """L = ⌈log₂ span⌉ gated convolutions of two steps each; each adds its output to what the next one reads.

    With x = [x_0, ..., x_{T−1}], R = 1, 2, 4, ..., 2^(L−1), and zeros before the trial's start:

        f, g = W x_t + V x_{t−R} + b
        x_t ← [x_t, tanh(f)·σ(g)]

    So the last output depends on the last 2^L >= span steps. Of whole trials, all layers write into one
    tensor: with time first, x_t and x_{t−R} are rows of the same memory, and nothing is copied together.

    Args:
        in_features: length of x_t.
        filters: length of each layer's output.
        span: number of steps, >= 2.
    """

    def __init__(self, in_features: int, filters: int, span: int) -> None:
        super().__init__()
        self.dilations = [2**i for i in range((span - 1).bit_length())]  # ⌈log₂ span⌉ of them
        widths = [in_features + i * filters for i in range(len(self.dilations))]
        self.weight = nn.ParameterList(_weight(4 * filters, width) for width in widths)  # W, then V
        self.bias = nn.ParameterList(torch.zeros(2 * filters) for _ in widths)
        self.out_features = in_features + len(self.dilations) * filters

    def begin(self) -> Past:
        """Return the past at a trial's start, where nothing has been read."""
        return ((),) * len(self.dilations)

    def step(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Read one step, [B, in_features] -> [B, out_features]; return also the past of the next."""
        following = []
        for dilation, kept, weight, bias in zip(self.dilations, past, self.weight, self.bias, strict=True):
            now, later = (x @ weight.t()).chunk(2, dim=-1)  # [B, 2·filters] each
            full = len(kept) == dilation  # before that, x_{t−R} is 0
            f, g = (now + (kept[0] if full else bias)).chunk(2, dim=-1)
            following.append((*(kept[1:] if full else kept), later + bias))
            x = torch.cat([x, torch.tanh(f) * torch.sigmoid(g)], dim=-1)
        return x, tuple(following)

    def forward(self, x: Tensor) -> Tensor:
        """Read whole trials, [T, B, in_features] -> [T, B, out_features]."""
        y: Tensor = _Whole.apply(  # type: ignore[no-untyped-call]
            x, self.dilations, torch.is_grad_enabled(), *self.weight, *self.bias
        )
        return y


def repeated_past(past: Past, times: int) -> Past:
    """Return the past of every trial ``times`` times, side by side."""
    return tuple(tuple(kept.repeat_interleave(times, dim=0) for kept in layer) for layer in past)


def _weight(rows: int, columns: int) -> nn.Parameter:
    """Return W and V, whose products with inputs of variance 1 add up to a variance of 1."""
    return nn.Parameter(torch.randn(rows, columns) / math.sqrt(2 * columns))


class _Whole(torch.autograd.Function):
    """The convolutions of whole trials; steps and trials are the rows of matrices, n = T·B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dilations: list[int], learning: bool, *weights: Tensor) -> Tensor:
        """Write each layer's output beside its input."""
        (steps, rows, width), count = x.shape, len(dilations)
        filters = len(weights[-1]) // 2
        y = x.new_empty(steps * rows, width + count * filters)
        y[:, :width] = x.flatten(0, 1)
        gates = []
        for dilation, weight, bias in zip(dilations, weights[:count], weights[count:], strict=True):
            late = min(dilation, steps) * rows
            now, later = (y[:, :width] @ weight.t()).chunk(2, dim=-1)  # [n, 2·filters] each
            gate = now + bias
            gate[late:] += later[: len(y) - late]
            f, g = gate[:, :filters].tanh_(), gate[:, filters:].sigmoid_()
            torch.mul(f, g, out=y[:, width : width + filters])
            width += filters
            if learning:
                gates.append(gate)
        ctx.dilations = dilations
        ctx.save_for_backward(*([y, *weights[:count], *gates] if learning else []))
        return y.view(steps, rows, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        """Add up the gradients of each layer's input from the last layer to the first."""
        count, (steps, rows, width) = len(ctx.dilations), d_y.shape
        y, *saved = ctx.saved_tensors
        d_y, d_weights, d_biases = d_y.flatten(0, 1).clone(), [], []
        layers = [*zip(ctx.dilations, saved[:count], saved[count:], strict=True)]
        for dilation, weight, gate in reversed(layers):
            late, filters = min(dilation, steps) * rows, len(weight) // 4
            width -= filters
            d_out = y.new_empty(len(y), 4 * filters)  # of W x_t and of V x_t
            d_now, d_later = d_out.chunk(2, dim=-1)
            _through_gate(d_y[:, width : width + filters], gate, d_now)
            d_later[: len(y) - late], d_later[len(y) - late :] = d_now[late:], 0
            d_weights.append(d_out.t() @ y[:, :width])
            d_biases.append(d_now.sum(dim=0))
            d_y[:, :width].addmm_(d_out, weight)
        return d_y[:, :width].view(steps, rows, width), None, None, *d_weights[::-1], *d_biases[::-1]


def _through_gate(d_z: Tensor, gate: Tensor, out: Tensor) -> None:
    """Write the gradients of f and g, [n, 2·filters], for that of z = tanh(f)·σ(g)."""
    (tanh, sigmoid), (d_f, d_g) = gate.chunk(2, dim=-1), out.chunk(2, dim=-1)
    d_zs = d_z * sigmoid
    torch.addcmul(d_zs, d_zs * tanh, tanh, value=-1, out=d_f)  # d_z σ(g) (1 − tanh²)
    d_zz = d_zs * tanh
    torch.addcmul(d_zz, d_zz, sigmoid, value=-1, out=d_g)  # d_z z (1 − σ)
