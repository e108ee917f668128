"""Policies' outputs: heads for action spaces, their distributions, and masks of illegal actions."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, Self

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl2meta.layers import LOOKED_UP as LOOKED_UP
from rl2meta.layers import Lookup as Lookup
from rl2meta.layers import Tanh as Tanh
from rl2meta.layers import mlp as mlp
from rl2meta.layers import stacked as stacked
from rl2meta.learner_state import under
from rl2meta.spaces import encoding

_LOG_ROOT_TAU = math.log(2 * math.pi) / 2
_IMPOSSIBLE = -1e9  # a logit; its probability is 0, and unlike −∞ it gives no NaN in 0 · log 0


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
    device, and draws with a given generator. In memory actions come first, [A, ...]: a processor computes
    with rows of many states several times as fast as with rows of few actions.
    """

    def __init__(self, logits: Tensor) -> None:
        self._rows = torch.log_softmax(logits.movedim(-1, 0), dim=0)  # [..., A] -> [A, ...]

    @property
    def log_probs(self) -> Tensor:
        """The log-probability of every action, log π(a), [..., A]."""
        return self._rows.movedim(0, -1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw actions [...]: the first a with π(0) + … + π(a) > u, u ~ U[0, 1), up to float32 rounding."""
        up_to = self._rows.exp().cumsum(dim=0)
        place = torch.rand(1, *up_to.shape[1:], generator=generator, device=up_to.device, dtype=up_to.dtype)
        # u is scaled by the rounded sum, so it stays below it and the result is always a possible action.
        return (up_to <= place * up_to[-1:]).sum(dim=0)  # [A, ...] -> [...]

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log π(action), [...]."""
        return self._rows.gather(0, action.unsqueeze(0)).squeeze(0)

    def entropy(self) -> Tensor:
        """Return −Σₐ π(a) log π(a), [...]."""
        return -(self._rows.exp() * self._rows).sum(dim=0)

    def mode(self) -> Tensor:
        """Return argmaxₐ π(a), [...]."""
        return self._rows.max(dim=0).indices  # argmax along the first axis takes several times as long

    def kl(self, other: "Categorical") -> Tensor:
        """Return Σₐ π(a) (log π(a) − log π'(a)), [...]."""
        return (self._rows.exp() * (self._rows - other._rows)).sum(dim=0)


class Categoricals:
    """Independent distributions over the entries of an action, from the logits of all, [..., Σ sizes].

    Log-probabilities, entropies and divergences are the sums of those of the entries.

    Args:
        logits: of the first entry, then of the second, and so on.
        sizes: number of values of each entry.
    """

    def __init__(self, logits: Tensor, sizes: Sequence[int]) -> None:
        self._each = Categorical(_by_entry(logits, sizes))  # [..., entries, largest size]

    def probabilities(self) -> Tensor:
        """Return the probability of each value of each entry, [..., entries, largest size]."""
        return self._each.log_probs.exp()

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw actions, [..., entries]."""
        return self._each.sample(generator)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log π(action), summed over its entries, [...]."""
        return self._each.log_prob(action).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Return the sum of the entropies of the entries, [...]."""
        return self._each.entropy().sum(dim=-1)

    def mode(self) -> Tensor:
        """Return the most likely value of each entry, [..., entries]."""
        return self._each.mode()

    def kl(self, other: "Categoricals") -> Tensor:
        """Return the sum of the divergences of the entries, [...]."""
        return self._each.kl(other._each).sum(dim=-1)


def _by_entry(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the logits by entry, [..., entries, largest size]; values that do not exist are impossible.

    They are so even beside values that are all illegal, as in an environment that idles after its last step.
    """
    largest = max(sizes)
    if all(size == largest for size in sizes):
        return logits.reshape(*logits.shape[:-1], len(sizes), largest)
    parts = [
        torch.nn.functional.pad(part, (0, largest - part.shape[-1]), value=2 * _IMPOSSIBLE)
        for part in torch.split(logits, list(sizes), dim=-1)
    ]
    return torch.stack(parts, dim=-2)


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


def action_distribution(space: gym.Space[Any]) -> Callable[[Tensor], ActionDistribution]:
    """Return the distribution over an action space, as a function of its parameters.

    Raises:
        TypeError: for a space without a distribution.
    """
    if isinstance(space, gym.spaces.Discrete) and space.start == 0:
        return Categorical
    if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
        return partial(Categoricals, sizes=space.nvec.tolist())
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return Gaussian
    raise TypeError(
        "expected an action space that is Discrete, or a Box or MultiDiscrete of one axis, counted from 0, "
        f"got {space}"
    )


def legal_only(parameters: Tensor, legal: Tensor | None) -> Tensor:
    """Return logits with which illegal actions have probability 0, [..., A].

    Args:
        parameters: the logits, [..., A].
        legal: bool [..., A], true for legal actions; None or [..., 0]: every action is legal.
    """
    if legal is None or not legal.shape[-1]:
        return parameters
    return torch.where(legal, parameters, _IMPOSSIBLE)


class CategoricalHead(nn.Module):
    """Features -> the distribution over a discrete action space, one linear layer for all logits.

    Args:
        in_features: length of the features.
        space: Discrete or MultiDiscrete.
    """

    def __init__(self, in_features: int, space: gym.Space[Any]) -> None:
        super().__init__()
        self.distribution = action_distribution(space)
        self.linear = nn.Linear(in_features, encoding(space).size)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> ActionDistribution:
        """Return π(· | features) for features [..., in_features]."""
        return self.distribution(self.parameters_of(features))

    def parameters_of(self, features: Tensor) -> Tensor:
        """Return the parameters of ``distribution``: the logits, [..., A]."""
        logits: Tensor = self.linear(features)
        return logits

    def stacked(self, weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return the logits [N, rows, A] with weights [N, ...] of N tasks; see ``stacked``."""
        return stacked(self.linear, under("linear.", weights), features)

    def stacked_parameters(self, weights: Mapping[str, Tensor], outputs: Tensor) -> Tensor:
        """Return the logits for the outputs of the linear layer: these themselves."""
        return outputs


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
        return self.stacked_parameters(weights, stacked(self.linear, under("linear.", weights), features))

    def stacked_parameters(self, weights: Mapping[str, Tensor], outputs: Tensor) -> Tensor:
        """Return the parameters [N, rows, 2A] for the outputs of the linear layer, [N, rows, A]."""
        return self._in_units(outputs, weights["log_deviation"].unsqueeze(1))

    def _in_units(self, mean: Tensor, log_deviation: Tensor) -> Tensor:
        if self._has_units:
            mean, log_deviation = self.centre + self.scale * mean, log_deviation + self.scale.log()
        return torch.cat([mean, log_deviation.expand_as(mean)], dim=-1)  # [..., A] -> [..., 2A]


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
    if action_distribution(space) is not Gaussian:
        return CategoricalHead(in_features, space)
    return GaussianHead(in_features, encoding(space).size, deviation, units)
