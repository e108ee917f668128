"""The network that a learned optimiser trains, the agent that trains it, and hand-made rules for comparison.

Source: Andrychowicz et al. 2016 (arXiv 1606.04474), and the authors' code.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rl2meta.agents.lstm_rule import LSTMRule
from rl2meta.agents.maml import Adapted, InnerConfig, InnerLoop, MAMLAgent, named
from rl2meta.agents.maml_regression import SquaredError
from rl2meta.agents.numbers import Count, Positive
from rl2meta.agents.policy_gradient import vector_size
from rl2meta.agents.references.reference import KNOWS_NOTHING, Reference
from rl2meta.agents.rows import Rows
from rl2meta.agents.rule import Rule
from rl2meta.agents.rules import SGD, AdamRule, AnyRule, Momentum, RMSprop
from rl2meta.errors import UserError
from rl2meta.learner_state import seeded, under
from rl2meta.networks import stacked

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
}
RATES = tuple(round(10 ** (quarter / 4), 6) for quarter in range(-12, 3))
"""Step sizes of the hand-made rules, from 0.001 to 3.2, four in each power of ten."""


class LearnedOptimiserConfig(InnerConfig):
    """The hyper-parameters of a learned optimiser: the network that it trains, and how it learns to."""

    hidden_sizes: list[Count] = Field([], description="units in each hidden layer of the optimisee")
    activation: Literal["sigmoid", "tanh", "relu", "elu"] = Field(
        "sigmoid", description="of the optimisee's hidden layers"
    )
    bias: bool = Field(True, description="whether the layers of the optimisee have biases")
    initial_deviation: Positive = Field(
        0.01, description="σ: every weight of the optimisee begins with a draw from N(0, σ²) in each trial"
    )
    loss: Literal["squared_error", "cross_entropy"] = Field(
        "squared_error",
        description="of the optimisee: Σ (f(x) − y)², or the cross-entropy of scores f(x) with target scores "
        "y; a mean over the examples of a phase",
    )
    episodes_per_phase: Count = Field(
        10, description="number of examples in each phase of a trial; a step of the rule follows a phase"
    )
    rule: AnyRule = Field(LSTMRule(), description="what is learnt: the rule's name and its settings")
    first_order: bool = Field(
        True, description="ignore the derivatives of the optimisee's gradients with respect to its weights"
    )
    unroll: Count = Field(20, description="inner steps between two outer steps, which look back so far")
    passes: Count = Field(
        1, description="number of times that an update walks along its trials, each from new initial weights"
    )
    learning_rate: Positive = Field(1e-3, description="Adam's learning rate at the start of training")
    final_learning_rate: Positive | None = Field(
        None, description="Adam's learning rate at the end of training; null: no change"
    )
    max_gradient_norm: Positive | None = Field(
        None, description="longer outer gradients are scaled down to this length; null: none are"
    )


class ScoreCrossEntropy(SquaredError):
    """The loss of scores: L = −E[softmax(y) · log softmax(f(x))], for target scores y."""

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Return −Σ w softmax(y) · log softmax(f(x))."""
        wanted = rows.label.softmax(dim=-1)  # [rows, classes]
        log_prob = (wanted * functional.log_softmax(outputs, dim=-1)).sum(dim=-1)  # [rows]
        return -(rows.weight * log_prob).sum()  # [rows] -> []


class Optimisee(nn.Module):
    """The network that is trained in a trial; its own weights only say names and shapes."""

    def __init__(self, in_features: int, out_features: int, config: LearnedOptimiserConfig) -> None:
        super().__init__()
        sizes = [in_features, *config.hidden_sizes, out_features]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b, bias=config.bias), ACTIVATIONS[config.activation]()]
        self.layers = nn.Sequential(*layers[:-1])

    def stacked(self, weights: Mapping[str, Tensor], observation: Tensor) -> Tensor:
        """Return [N, rows, out_features] for N tasks; each task uses its own weights."""
        return stacked(self.layers, under("layers.", weights), observation)

    def drawn(self, num_tasks: int, deviation: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Return new weights N(0, deviation²), [num_tasks, ...] each."""
        device = generator.device
        return {
            name: deviation * torch.randn(num_tasks, *like.shape, generator=generator, device=device)
            for name, like in self.named_parameters()
        }


def inner_loop(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], config: LearnedOptimiserConfig
) -> tuple[Optimisee, InnerLoop]:
    """Return the optimisee, and the inner loop that trains it.

    Raises:
        UserError: if actions are not vectors of numbers, or observations are images.
    """
    if not isinstance(action_space, gym.spaces.Box) or len(action_space.shape) != 1:
        raise UserError(
            f"agent.name: expected outputs of a network, a Box of one axis, got the action space "
            f"{action_space}; use a family that reveals targets, such as quadratics, digits or sinusoids"
        )
    sizes = vector_size(observation_space), action_space.shape[0]
    network = seeded(lambda: Optimisee(*sizes, config), 0)  # any seed: its own weights are never used
    objective = {"squared_error": SquaredError, "cross_entropy": ScoreCrossEntropy}[config.loss]
    return network, InnerLoop(network, objective(observation_space), config)


def optimising_agent(
    network: Optimisee, inner: InnerLoop, learnt: nn.Module, config: LearnedOptimiserConfig
) -> MAMLAgent:
    """Return an agent that draws initial weights in each trial and then trains by the rule of ``inner``."""

    def start(num_tasks: int, generator: torch.Generator) -> Adapted:
        return inner.start(network.drawn(num_tasks, config.initial_deviation, generator), named(learnt))

    return MAMLAgent(learnt, inner, start)


def hand_made_rules(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], config: LearnedOptimiserConfig
) -> dict[str, Reference]:
    """Return references that train the same network by hand-made rules, with tuned constants."""

    def agent(rule: Rule, rate: float) -> MAMLAgent:
        fixed = {"rule": rule, "inner_learning_rates": [rate], "learn_inner_rates": False}
        mine = config.model_copy(update=fixed)
        return optimising_agent(*inner_loop(observation_space, action_space, mine), nn.ModuleDict(), mine)

    def reference(line: str, make: Callable[..., Rule], **grid: tuple[float, ...]) -> Reference:
        build = lambda rate=0.01, **settings: agent(make(**settings), rate)  # noqa: E731
        return Reference(line, build, {"rate": RATES, **grid}, KNOWS_NOTHING)

    nag = lambda momentum=0.9: Momentum(momentum=momentum, nesterov=True)  # noqa: E731
    return {
        "sgd": reference("gradient descent, θ' = θ − α g", SGD),
        "nag": reference("gradient descent with Nesterov's momentum", nag, momentum=(0.9, 0.95)),
        "rmsprop": reference("RMSprop", RMSprop, decay=(0.9, 0.99)),
        "adam": reference("Adam", AdamRule),
    }
