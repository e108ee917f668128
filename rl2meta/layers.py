"""Layers: the MLP, the table of observations, and layers with separate weights for each task."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from rl2meta.kernels import compiled
from rl2meta.learner_state import under

LOOKED_UP = 64
"""Length of the vectors that stand for discrete observations of many values."""


def mlp(in_features: int, hidden_sizes: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Return hidden layers, each followed by ``activation``.

    Biases start uniform in ±1/√(fan in) and not at 0: with a zero observation, ReLU and zero biases, only the
    last bias would get a gradient.
    """
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [nn.Linear(in_features, size), activation()]
        nn.init.xavier_uniform_(layers[-2].weight)  # type: ignore[arg-type]
        in_features = size
    return nn.Sequential(*layers)


class Lookup(nn.Module):
    """Number [..., 1] -> vector [..., width]: a learnt row of a table, which replaces a long one-hot vector.

    Args:
        rows: how many numbers there are; row 0 is all zeros, and is never learnt: it stands for nothing.
        width: length of a vector.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, width) / width**0.5)  # as long as a one-hot vector

    def forward(self, number: Tensor) -> Tensor:
        """Return the rows, [..., width]."""
        return _something(number) * functional.embedding(number.squeeze(-1).long(), self.weight)


def _something(number: Tensor) -> Tensor:
    return (number > 0).to(number.dtype)


def stacked(module: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run a layer, or a Sequential, with separate weights for each task: one batched call per layer.

    ``vmap`` of ``functional_call`` computes the same, but is slower for the few rows of a step.

    Args:
        module: a Linear, Conv2d, LayerNorm or Lookup layer, a module without weights, or a Sequential of
            these.
        weights: by name, [N, ...] each.
        x: [N, rows, ...]; the input of one task's network is [rows, ...].

    Returns:
        [N, rows, ...].

    Raises:
        TypeError: for any other module with parameters or buffers, because all tasks would share them.
    """
    kind = type(module)  # not isinstance: a derived class may compute something else
    if kind in _ELEMENTWISE:
        return cast(Tensor, module(x))
    if kind is nn.Sequential:
        for name, layer in named_layers(cast(nn.Sequential, module)):
            x = stacked(layer, under(name, weights), x)
        return x
    if kind in _STACKED:
        return _STACKED[kind](module, weights, x)
    own = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    if own:
        raise TypeError(
            "expected a Linear, Conv2d, LayerNorm or Lookup layer, a Sequential of such, or a module without "
            f"parameters and buffers, got {kind.__name__} with {', '.join(own)}, which all tasks would "
            "share; build the network of known layers, or add this one to rl2meta.layers.stacked"
        )
    return cast(Tensor, vmap(module)(x))  # vmap, because it may use axes by number or mix the rows of a task


Chain = Sequence[tuple[str, nn.Module]]
"""Layers one after another, each with what its weights' names begin with, such as "trunk.0."."""


def named_layers(layers: nn.Sequential, prefix: str = "") -> Chain:
    """Return the layers of a Sequential with the names of their weights; a layer may occur twice."""
    names = {layer: name for name, layer in layers.named_children()}
    return [(f"{prefix}{names[layer]}.", layer) for layer in layers]


def stacked_chain(layers: Chain, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run layers one after another as ``stacked`` does: to the bit, unless compiled kernels are chosen.

    These run linear layers with tanh between them, for inputs that need no gradient (``tanh_chain``).
    """
    if compiled(x) and x.dim() == 3 and not x.requires_grad and is_tanh_chain(layers):
        from rl2meta.tanh_chain import chain

        return chain([weights[name + part] for name, _ in layers[::2] for part in ("weight", "bias")], x)
    return _folded_chain(layers, weights, x)


def is_tanh_chain(layers: Chain) -> bool:
    """Return whether layers are linear ones with biases, with a ``Tanh`` between any two of them."""
    kinds = [nn.Linear, *(kind for _ in range(len(layers) // 2) for kind in (Tanh, nn.Linear))]
    if len(layers) == 1 or [type(layer) for _, layer in layers] != kinds:
        return False
    return all(layer.bias is not None for _, layer in layers[::2])


def _folded_chain(layers: Chain, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run layers as ``stacked`` does, to the bit, with fewer passes over the activations.

    A ``Tanh`` between two linear layers is h = 2σ(2z) − 1, whose factors go to the layers' small weights:

        2z = x (2W)ᵀ + 2b        h / 2 = σ(2z) − ½        the next layer: h Wᵀ + b = (h / 2) (2W)ᵀ + b

    That is two passes over activations instead of four, and one instead of three back. Powers of two change
    no rounding, in the result and in all its derivatives. Where a task has few rows, weights are larger than
    activations, and ``stacked`` takes less time.
    """
    modules = [layer for _, layer in layers]
    folded = [_folds(x, *modules[max(0, i - 1) : i + 2]) for i in range(len(modules))]
    for i, (name, layer) in enumerate(layers):
        before, after = i > 0 and folded[i - 1], folded[i + 1 : i + 2] == [True]
        if folded[i]:
            x = x.sigmoid_()  # of the layer before, which needs it no more
            x = x - 0.5 if torch.is_grad_enabled() else x.sub_(0.5)
        elif before or after:
            x = _scaled_linear(under(name, weights), x, before, after)
        else:
            x = stacked(layer, under(name, weights), x)
    return x


def _folds(x: Tensor, *layers: nn.Module) -> bool:
    """Return whether the second of three layers is a ``Tanh`` whose factors go to the other two."""
    if tuple(map(type, layers)) != (nn.Linear, Tanh, nn.Linear):
        return False
    first, _, last = cast(tuple[nn.Linear, Tanh, nn.Linear], layers)
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 3  # see Tanh
    return (
        plain and x.shape[1] > first.in_features + last.out_features and None not in (first.bias, last.bias)
    )


def _scaled_linear(weights: Mapping[str, Tensor], x: Tensor, before: bool, after: bool) -> Tensor:
    """Return z = h Wᵀ + b, or 2z if a tanh comes ``after``; h is 2x if a tanh was ``before``, else x."""
    weight, bias = weights["weight"] * (2**before * 2**after), weights["bias"] * 2**after
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def _stacked_linear(layer: nn.Linear, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    rows = x.flatten(1, -2) if x.dim() > 3 else x  # [N, all rows, in_features]
    if layer.bias is None:  # torch's type hints exclude None
        y = torch.bmm(rows, weights["weight"].mT)  # type: ignore[unreachable]
    else:
        y = torch.baddbmm(weights["bias"].unsqueeze(1), rows, weights["weight"].mT)
    return y.reshape(*x.shape[:-1], -1) if x.dim() > 3 else y  # [N, rows, ..., out_features]


def _stacked_lookup(layer: Lookup, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    table = weights["weight"]  # [N, numbers, width]
    number = x.flatten(1).long()  # [N, all rows]
    rows = table.gather(1, number.unsqueeze(-1).expand(-1, -1, table.shape[-1]))
    return _something(x) * rows.reshape(*x.shape[:-1], -1)  # [N, rows, ..., width]


def _stacked_layer_norm(layer: nn.LayerNorm, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    y = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    own = {name: _beside(weights[name], y) for name, _ in layer.named_parameters()}
    if "weight" in own:
        y = y * own["weight"]
    return y + own["bias"] if "bias" in own else y


def _beside(weight: Tensor, y: Tensor) -> Tensor:
    """[N, *shape] -> [N, 1, ..., 1, *shape], with as many axes as y [N, rows, ..., *shape]."""
    return weight[(slice(None), *[None] * (y.dim() - weight.dim()))]


def _stacked_conv2d(layer: nn.Conv2d, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run one convolution with separate groups for each task: x [N, rows, C, H, W]."""
    if layer.padding_mode != "zeros":
        raise TypeError(
            f"expected a Conv2d with padding_mode='zeros', got {layer.padding_mode!r}; "
            "pad in a layer of its own, such as nn.CircularPad2d"
        )
    y = functional.conv2d(
        x.transpose(0, 1).flatten(1, 2),  # [rows, N × C, H, W]
        weights["weight"].flatten(0, 1),  # [N × out channels, C / groups, ...]
        None if layer.bias is None else weights["bias"].flatten(),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups * len(x),
    )
    return y.reshape(len(y), len(x), -1, *y.shape[2:]).transpose(0, 1)  # [N, rows, out channels, ...]


class Tanh(nn.Module):
    """tanh, computed as 2σ(2x) − 1 in float32 on a CPU, where torch's tanh takes more than twice as long.

    The two differ by at most 2·10⁻⁷.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(x), elementwise."""
        if x.device.type == "cpu" and x.dtype == torch.float32:
            if torch.is_grad_enabled():
                return 2 * torch.sigmoid(x + x) - 1
            return (x + x).sigmoid_().mul_(2).sub_(1)
        return torch.tanh(x)


_STACKED: Mapping[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _stacked_linear,
    Lookup: _stacked_lookup,
    nn.LayerNorm: _stacked_layer_norm,
    nn.Conv2d: _stacked_conv2d,
}
_ELEMENTWISE = frozenset(
    {Tanh, nn.Tanh, nn.ReLU, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Sigmoid, nn.Softplus, nn.Identity}
)
