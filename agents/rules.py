"""Rules of the inner loop: how a gradient changes the weights of a task.

    θ', s' = step(θ, s, ∇L(θ))

A rule works on the weights of all tasks at once, so every tensor of weights, gradients and state s has the
shape [num_tasks, ...]. What a rule learns between trials (Meta-SGD's factors, the network of a learned
optimiser) is shared by all tasks; the outer loop differentiates through ``step``.

Sources: Polyak 1964 (momentum); Sutskever et al. 2013 (Nesterov's momentum, in the form that torch uses);
Kingma & Ba 2015 (arXiv 1412.6980, Adam); Li et al. 2017 (arXiv 1707.09835, Meta-SGD).
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rl2meta.agents.lstm_rule import LSTMRule
from rl2meta.agents.numbers import Positive
from rl2meta.agents.rule import State, Stepped, Weights

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
_Decay = Annotated[float, Field(ge=0, lt=1)]


class SGD(BaseModel):
    """θ' = θ − α g."""

    model_config = _STRICT
    numbers_per_weight: ClassVar[int] = 0

    name: Literal["sgd"] = "sgd"

    def learnt(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return nothing."""
        return {}

    def begin(self, weights: Weights) -> State:
        """Return nothing."""
        return {}

    def step(
        self, weights: Weights, state: State, gradients: Weights, rate: float, learnt: Weights
    ) -> Stepped:
        """Step against the gradient."""
        return Stepped({name: weight - rate * gradients[name] for name, weight in weights.items()}, state)


class MetaSGD(BaseModel):
    """θ' = θ − α β ∘ g, with a factor β for each weight of the network, initially 1.

    All inner steps share the factors, so inner steps beyond those of training can use them too.
    """

    model_config = _STRICT
    numbers_per_weight: ClassVar[int] = 0

    name: Literal["meta_sgd"] = "meta_sgd"

    def learnt(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return the factors."""
        named = network.named_parameters()  # a ParameterDict allows no dots in names
        ones = {name.replace(".", "/"): torch.ones_like(value) for name, value in named}
        return {"factors": nn.ParameterDict(ones)}

    def begin(self, weights: Weights) -> State:
        """Return nothing."""
        return {}

    def step(
        self, weights: Weights, state: State, gradients: Weights, rate: float, learnt: Weights
    ) -> Stepped:
        """Step against the gradient, by a learnt length in each coordinate."""
        factors = {name: learnt[f"factors.{name.replace('.', '/')}"] for name in weights}
        new = {name: weight - rate * factors[name] * gradients[name] for name, weight in weights.items()}
        return Stepped(new, state)


class Momentum(BaseModel):
    """v' = μ v + g, θ' = θ − α v'; with ``nesterov`` θ' = θ − α (g + μ v')."""

    model_config = _STRICT
    numbers_per_weight: ClassVar[int] = 1

    name: Literal["momentum"] = "momentum"
    momentum: _Decay = Field(0.9, description="μ, the part of the velocity that stays after a step")
    nesterov: bool = Field(False, description="look ahead along the velocity, as Nesterov does")

    def learnt(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return nothing."""
        return {}

    def begin(self, weights: Weights) -> State:
        """Return velocities of 0."""
        return _zeros(weights)

    def step(
        self, weights: Weights, state: State, gradients: Weights, rate: float, learnt: Weights
    ) -> Stepped:
        """Step along the velocity."""
        velocity = {name: self.momentum * state[name] + gradient for name, gradient in gradients.items()}
        ahead = velocity
        if self.nesterov:
            ahead = {name: gradients[name] + self.momentum * v for name, v in velocity.items()}
        return Stepped({name: weight - rate * ahead[name] for name, weight in weights.items()}, velocity)


class RMSprop(BaseModel):
    """v' = ρ v + (1 − ρ) g², θ' = θ − α g / (√v' + ε)."""

    model_config = _STRICT
    numbers_per_weight: ClassVar[int] = 2

    name: Literal["rmsprop"] = "rmsprop"
    decay: _Decay = Field(0.99, description="ρ, the part of the mean square that stays after a step")
    epsilon: Positive = Field(1e-8, description="ε, added to the root of the mean square")

    def learnt(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return nothing."""
        return {}

    def begin(self, weights: Weights) -> State:
        """Return mean squares of 0."""
        return _zeros(weights)

    def step(
        self, weights: Weights, state: State, gradients: Weights, rate: float, learnt: Weights
    ) -> Stepped:
        """Step against the gradient, in units of its root mean square."""
        square = _averaged(state, {name: g.square() for name, g in gradients.items()}, self.decay)
        new = {
            name: weight - rate * gradients[name] / (_root(square[name]) + self.epsilon)
            for name, weight in weights.items()
        }
        return Stepped(new, square)


class AdamState(NamedTuple):
    """What Adam remembers.

    Attributes:
        first, second: m and v, by name, in the shapes of the weights.
        steps: t, int64 [num_tasks], the number of steps in these means.
    """

    first: dict[str, Tensor]
    second: dict[str, Tensor]
    steps: Tensor


class AdamRule(BaseModel):
    """m' = β₁ m + (1 − β₁) g, v' = β₂ v + (1 − β₂) g², θ' = θ − α m̂ / (√v̂ + ε), m̂ = m'/(1 − β₁ᵗ), v̂ alike."""

    model_config = _STRICT
    numbers_per_weight: ClassVar[int] = 4

    name: Literal["adam"] = "adam"
    beta1: _Decay = Field(0.9, description="β₁, the part of the mean gradient that stays after a step")
    beta2: _Decay = Field(0.999, description="β₂, the part of the mean square that stays after a step")
    epsilon: Positive = Field(1e-8, description="ε, added to the root of the mean square")

    def learnt(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return nothing."""
        return {}

    def begin(self, weights: Weights) -> State:
        """Return moments of 0."""
        any_of = next(iter(weights.values()))
        steps = torch.zeros(len(any_of), dtype=torch.int64, device=any_of.device)  # [num_tasks]
        return AdamState(_zeros(weights), _zeros(weights), steps)

    def step(
        self, weights: Weights, state: State, gradients: Weights, rate: float, learnt: Weights
    ) -> Stepped:
        """Step against the mean gradient, in units of the root mean square."""
        steps = state.steps + 1
        first = _averaged(state.first, gradients, self.beta1)
        second = _averaged(state.second, {name: g.square() for name, g in gradients.items()}, self.beta2)
        new = {
            name: weight
            - rate
            * _unbiased(first[name], self.beta1, steps)
            / (_root(_unbiased(second[name], self.beta2, steps)) + self.epsilon)
            for name, weight in weights.items()
        }
        return Stepped(new, AdamState(first, second, steps))


AnyRule = Annotated[SGD | Momentum | RMSprop | AdamRule | MetaSGD | LSTMRule, Field(discriminator="name")]


def _zeros(weights: Weights) -> dict[str, Tensor]:
    return {name: torch.zeros_like(weight) for name, weight in weights.items()}


def _averaged(mean: Weights, new: Weights, decay: float) -> dict[str, Tensor]:
    return {name: decay * mean[name] + (1 - decay) * value for name, value in new.items()}


def _unbiased(mean: Tensor, decay: float, steps: Tensor) -> Tensor:
    """Divide a running mean [num_tasks, ...] by the sum of its weights, 1 − βᵗ."""
    total = (1 - decay ** steps.double()).to(mean.dtype)  # [num_tasks]
    return mean / total.reshape(-1, *[1] * (mean.dim() - 1))


def _root(square: Tensor) -> Tensor:
    """Return √x, with derivative 0 at 0: there √x has none, and a weight without gradient has x = 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
