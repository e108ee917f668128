"""The interface of a rule: how a gradient changes the weights of a task; the rules are in ``rules``."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

Weights = Mapping[str, Tensor]
State = Any
"""What a rule remembers of a trial: tensors [num_tasks, ...], in mappings and named tuples."""


class Stepped(NamedTuple):
    """The result of a step.

    Attributes:
        weights: θ', by name, [num_tasks, ...] each.
        state: s'.
    """

    weights: dict[str, Tensor]
    state: State


class Rule(Protocol):
    """How a gradient changes the weights of a task; a rule is its own config.

    Attributes:
        numbers_per_weight: how many numbers a step holds for each weight of a task, beside the weight and
            its gradient; an estimate.
    """

    numbers_per_weight: ClassVar[int]

    def learnt(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return what the outer loop learns of the rule, by name, for the network that it will change."""
        ...

    def begin(self, weights: Weights) -> State:
        """Return the state before the first step, for weights [num_tasks, ...]."""
        ...

    def step(
        self, weights: Weights, state: State, gradients: Weights, rate: float, learnt: Weights
    ) -> Stepped:
        """Return the weights and the state after one step.

        Args:
            weights: θ, by name, [num_tasks, ...] each.
            state: s, from ``begin`` or the step before.
            gradients: ∇L(θ), in the shapes of the weights.
            rate: α, the step size.
            learnt: the named parameters of what ``learnt`` returned, [...] each.
        """
        ...
