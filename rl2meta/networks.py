"""Networks: action heads for action spaces, the MLP, and layers with separate weights for each task."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, cast

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from rl2meta.learner_state import under
from rl2meta.spaces import encoding

_LOG_ROOT_TAU = math.log(2 * math.pi) / 2


class ActionDistribution(Protocol):
    """A policy's distribution over actions in a batch of states."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw actions with ``generator``."""
        ...

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log π(action)."""
        ...

    def entropy(self) -> Tensor:
        """Return the entropy in nats."""
        ...

    def mode(self) -> Tensor:
        """Return the most likely actions."""
        ...

    def kl(self, other: Self) -> Tensor:
        """Return KL(self ‖ other) in nats."""
        ...


class Categorical:
    """A distribution over {0, ..., A−1}, from logits [..., A].

    Unlike torch.distributions, it computes one log-softmax, has no argument checks that read back from the
    device, and draws with a given generator.
    """

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = torch.log_softmax(logits, dim=-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw actions [...]: the first a with π(0) + … + π(a) > u, u ~ U[0, 1), up to float32 rounding."""
        up_to = self.log_probs.exp().cumsum(dim=-1)
        place = torch.rand(*up_to.shape[:-1], 1, generator=generator, device=up_to.device, dtype=up_to.dtype)
        # u is scaled by the rounded sum, so it stays below it and the result is always a possible action.
        return (up_to <= place * up_to[..., -1:]).sum(dim=-1)  # [..., A] -> [...]

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log π(action), [...]."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return −Σₐ π(a) log π(a), [...]."""
        return -(self.log_probs.exp() * self.log_probs).sum(dim=-1)

    def mode(self) -> Tensor:
        """Return argmaxₐ π(a), [...]."""
        return self.log_probs.argmax(dim=-1)

    def kl(self, other: "Categorical") -> Tensor:
        """Return Σₐ π(a) (log π(a) − log π'(a)), [...]."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(dim=-1)


class Gaussian:
    """Independent normal distributions over the entries of an action, from [..., 2A]: means, log std. devs.

    The log-probability is the sum over the entries. Draws have no bounds (see ``spaces.bounded``).
    """

    def __init__(self, parameters: Tensor) -> None:
        self.mean, self.log_deviation = parameters.chunk(2, dim=-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw actions [..., A]."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + self.log_deviation.exp() * noise

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log π(action), summed over its entries, [...]."""
        scaled = (action - self.mean) * (-self.log_deviation).exp()
        return -(scaled.square() / 2 + self.log_deviation + _LOG_ROOT_TAU).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Return Σ log σ + log √(2πe), [...]."""
        return (self.log_deviation + _LOG_ROOT_TAU + 0.5).sum(dim=-1)

    def mode(self) -> Tensor:
        """Return the mean, [..., A]."""
        return self.mean

    def kl(self, other: "Gaussian") -> Tensor:
        """Return Σ log σ'/σ + (σ² + (μ − μ')²) / 2σ'² − 1/2, [...]."""
        variance, distance = (2 * self.log_deviation).exp(), (self.mean - other.mean).square()
        spread = (variance + distance) * (-2 * other.log_deviation).exp() / 2
        return (other.log_deviation - self.log_deviation + spread - 0.5).sum(dim=-1)


class CategoricalHead(nn.Module):
    """Features -> Categorical, one linear layer."""

    distribution: Callable[[Tensor], Categorical] = staticmethod(Categorical)

    def __init__(self, in_features: int, num_actions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_actions)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Categorical:
        """Return π(· | features) for features [..., in_features]."""
        return self.distribution(self.parameters_of(features))

    def parameters_of(self, features: Tensor) -> Tensor:
        """Return the parameters of ``distribution``: the logits, [..., A]."""
        logits: Tensor = self.linear(features)
        return logits

    def stacked(self, weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the logits [N, rows, A] with weights [N, ...] of N tasks; see ``stacked``."""
        return stacked(self.linear, under("linear.", weights), features)


class GaussianHead(nn.Module):
    """Features -> Gaussian: a linear layer for the means; deviations do not depend on the features.

    Args:
        in_features: length of the features.
        num_entries: A, the entries of an action.
        deviation: initial standard deviation, in units of ``scale``.
        units: centre and scale of the actions, [A] each; the layer's output 0 means the centre.
    """

    distribution: Callable[[Tensor], Gaussian] = staticmethod(Gaussian)
    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        in_features: int,
        num_entries: int,
        deviation: float = 1.0,
        units: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._has_units = units is not None
        for name, value in zip(("centre", "scale"), units or (torch.zeros(1), torch.ones(1)), strict=True):
            self.register_buffer(name, value, persistent=False)
        self.linear = nn.Linear(in_features, num_entries)
        nn.init.orthogonal_(self.linear.weight, 0.1)
        nn.init.zeros_(self.linear.bias)
        self.log_deviation = nn.Parameter(torch.full((num_entries,), math.log(deviation)))

    def forward(self, features: Tensor) -> Gaussian:
        """Return π(· | features) for features [..., in_features]."""
        return self.distribution(self.parameters_of(features))

    def parameters_of(self, features: Tensor) -> Tensor:
        """Return the parameters of ``distribution``: means and log standard deviations, [..., 2A]."""
        return self._in_units(self.linear(features), self.log_deviation)

    def stacked(self, weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the parameters [N, rows, 2A] with weights [N, ...] of N tasks; see ``stacked``."""
        mean = stacked(self.linear, under("linear.", weights), features)  # [N, rows, A]
        return self._in_units(mean, weights["log_deviation"].unsqueeze(1))  # [N, rows, 2A]

    def _in_units(self, mean: Tensor, log_deviation: Tensor) -> Tensor:
        if self._has_units:
            mean, log_deviation = self.centre + self.scale * mean, log_deviation + self.scale.log()
        return torch.cat([mean, log_deviation.expand_as(mean)], dim=-1)  # [..., A] -> [..., 2A]


def action_distribution(space: gym.Space[Any]) -> Callable[[Tensor], ActionDistribution]:
    """Return the class of distributions over an action space; it is called with their parameters.

    Raises:
        TypeError: for a space without a head.
    """
    if isinstance(space, gym.spaces.Discrete) and space.start == 0:
        return Categorical
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return Gaussian
    raise TypeError(f"expected a Discrete action space that starts at 0 or a Box of one axis, got {space}")


def action_head(
    space: gym.Space[Any],
    in_features: int,
    deviation: float = 1.0,
    units: tuple[Tensor, Tensor] | None = None,
) -> CategoricalHead | GaussianHead:
    """Return the policy head for an action space; see ``GaussianHead`` for continuous actions.

    Raises:
        TypeError: for a space without a head.
    """
    if action_distribution(space) is Categorical:
        return CategoricalHead(in_features, encoding(space).size)
    return GaussianHead(in_features, encoding(space).size, deviation, units)


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


def stacked(module: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run a layer, or a Sequential, with separate weights for each task: one batched call per layer.

    ``vmap`` of ``functional_call`` computes the same, but is slower for the few rows of a step.

    Args:
        module: a Linear, Conv2d or LayerNorm layer, a module without weights, or a Sequential of these.
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
        names = {layer: name for name, layer in module.named_children()}  # a layer may occur twice
        for layer in cast(nn.Sequential, module):
            x = stacked(layer, under(f"{names[layer]}.", weights), x)
        return x
    if kind in _STACKED:
        return _STACKED[kind](module, weights, x)
    own = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    if own:
        raise TypeError(
            "expected a Linear, Conv2d or LayerNorm layer, a Sequential of such, or a module without "
            f"parameters and buffers, got {kind.__name__} with {', '.join(own)}, which all tasks would "
            "share; build the network of known layers, or add this one to rl2meta.networks.stacked"
        )
    return cast(Tensor, vmap(module)(x))  # vmap, because it may use axes by number or mix the rows of a task


def _stacked_linear(layer: nn.Linear, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    rows = x.flatten(1, -2) if x.dim() > 3 else x  # [N, all rows, in_features]
    if layer.bias is None:  # torch's type hints exclude None
        y = torch.bmm(rows, weights["weight"].mT)  # type: ignore[unreachable]
    else:
        y = torch.baddbmm(weights["bias"].unsqueeze(1), rows, weights["weight"].mT)
    return y.reshape(*x.shape[:-1], -1) if x.dim() > 3 else y  # [N, rows, ..., out_features]


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
            return 2 * torch.sigmoid(x + x) - 1
        return torch.tanh(x)


_STACKED: Mapping[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _stacked_linear,
    nn.LayerNorm: _stacked_layer_norm,
    nn.Conv2d: _stacked_conv2d,
}
_ELEMENTWISE = frozenset(
    {Tanh, nn.Tanh, nn.ReLU, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Sigmoid, nn.Softplus, nn.Identity}
)
