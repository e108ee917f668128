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

    So the last layer's output depends on the last 2^L >= span steps. Features of layers are never copied
    together: with time first, a convolution is two matrix products on rows of the same memory.

    Args:
        in_features: length of x_t.
        filters: length of each layer's output.
        span: number of steps, >= 2.
    """

    def __init__(self, in_features: int, filters: int, span: int) -> None:
        super().__init__()
        self.dilations = [2**i for i in range(math.ceil(math.log2(span)))]
        widths = [in_features + i * filters for i in range(len(self.dilations))]
        self.now, self.before = (
            nn.ParameterList(_weight(2 * filters, width) for width in widths) for _ in range(2)
        )
        self.bias = nn.ParameterList(torch.zeros(2 * filters) for _ in widths)
        self.out_features = in_features + len(self.dilations) * filters

    def begin(self) -> Past:
        """Return the past at a trial's start, where nothing has been read."""
        return ((),) * len(self.dilations)

    def step(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Read one step, [B, in_features] -> [B, out_features]; return also the past of the next."""
        following = []
        for dilation, kept, now, before, bias in zip(
            self.dilations, past, self.now, self.before, self.bias, strict=True
        ):
            full = len(kept) == dilation
            f, g = torch.addmm(kept[0] if full else bias, x, now.t()).chunk(2, dim=-1)
            following.append((*kept[full:], torch.addmm(bias, x, before.t())))
            x = torch.cat([x, torch.tanh(f) * torch.sigmoid(g)], dim=-1)
        return x, tuple(following)

    def forward(self, x: Tensor) -> Tensor:
        """Read whole trials, [T, B, in_features] -> [T, B, out_features]."""
        y: Tensor = _Whole.apply(  # type: ignore[no-untyped-call]
            x, self.dilations, torch.is_grad_enabled(), *self.now, *self.before, *self.bias
        )
        return y


def _weight(rows: int, columns: int) -> nn.Parameter:
    """Return W or V, whose products with inputs of variance 1 add up to a variance of 1."""
    return nn.Parameter(torch.randn(rows, columns) / math.sqrt(2 * columns))


class _Whole(torch.autograd.Function):
    """The convolutions of whole trials; steps and trials are the rows of matrices, n = T·B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dilations: list[int], learning: bool, *weights: Tensor) -> Tensor:
        """Write each layer's output beside its input."""
        steps, rows, width = x.shape
        count, filters = len(dilations), len(weights[-1]) // 2
        y = x.new_empty(steps * rows, width + count * filters)
        y[:, :width] = x.flatten(0, 1)
        gates = x.new_empty(count if learning else 1, steps * rows, 2 * filters)  # tanh(f), σ(g)
        for i, (dilation, now, before, bias) in enumerate(_layers(dilations, weights)):
            late, gate = min(dilation, steps) * rows, gates[i if learning else 0]
            torch.addmm(bias, y[:, :width], now.t(), out=gate)
            gate[late:].addmm_(y[: len(y) - late, :width], before.t())
            f, g = gate[:, :filters].tanh_(), gate[:, filters:].sigmoid_()
            torch.mul(f, g, out=y[:, width : width + filters])
            width += filters
        if learning:
            ctx.dilations = dilations
            ctx.save_for_backward(y, gates, *weights)
        return y.view(steps, rows, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        """Add up the gradients of each layer's input from the last layer to the first."""
        y, gates, *weights = ctx.saved_tensors
        (steps, rows, width), filters = d_y.shape, gates.shape[-1] // 2
        d_y, found = d_y.flatten(0, 1).clone(), []
        d_gate = torch.empty_like(gates[0])
        for (dilation, now, before, _), gate in reversed(
            [*zip(_layers(ctx.dilations, weights), gates, strict=True)]
        ):
            late, width = min(dilation, steps) * rows, width - filters
            _through_gate(d_y[:, width : width + filters], gate, y[:, width : width + filters], d_gate)
            d_late, seen, d_seen = d_gate[late:], y[:, :width], d_y[:, :width]
            early = slice(0, len(y) - late)
            found.append((d_gate.t() @ seen, d_late.t() @ seen[early], d_gate.sum(dim=0)))
            d_seen.addmm_(d_gate, now)
            d_seen[early].addmm_(d_late, before)
        by_kind = [each for kind in zip(*found[::-1], strict=True) for each in kind]
        return d_y[:, :width].view(steps, rows, width), None, None, *by_kind


def _layers(dilations: list[int], weights: Any) -> list[tuple[Any, ...]]:
    """Return dilation, W, V and b of each layer."""
    count = len(dilations)
    return [*zip(dilations, weights[:count], weights[count : 2 * count], weights[2 * count :], strict=True)]


def _through_gate(d_z: Tensor, gate: Tensor, z: Tensor, out: Tensor) -> None:
    """Write the gradients of f and g, [n, 2·filters], for that of z = tanh(f)·σ(g)."""
    (tanh, sigmoid), (d_f, d_g) = gate.chunk(2, dim=-1), out.chunk(2, dim=-1)
    d_zs = d_z * sigmoid
    torch.addcmul(d_zs, d_zs * tanh, tanh, value=-1, out=d_f)  # d_z σ(g) (1 − tanh²)
    d_zz = d_z * z
    torch.addcmul(d_zz, d_zz, sigmoid, value=-1, out=d_g)  # d_z z (1 − σ)
