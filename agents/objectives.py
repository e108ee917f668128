"""What an inner loop learns from, as a section of a config: the objective by its name, with its settings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import gymnasium as gym
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from rl2meta.agents.image_classifier import ImageClassifier
from rl2meta.agents.maml import InnerLoop, Objective
from rl2meta.agents.maml_classification import ClassifierConfig, CrossEntropy, classifier, loop_of
from rl2meta.agents.maml_regression import Activation, RegressionNetwork, SquaredError, regression_network
from rl2meta.agents.policy_gradient import AdvantageConfig, PolicyGradient, PolicyNetwork, policy_network
from rl2meta.errors import UserError
from rl2meta.shards import Shards
from rl2meta.trial import Trial

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class SquaredErrorConfig(BaseModel):
    """L = E[(f(x) − y)²], for families that reveal targets."""

    model_config = _STRICT

    name: Literal["squared_error"] = "squared_error"
    activation: Activation = Field("tanh", description="function of the hidden layers: relu or tanh")


class CrossEntropyConfig(ClassifierConfig):
    """L = −E[log softmax(f(x))_y], for families of images that reveal the numbers of their classes."""

    model_config = _STRICT

    name: Literal["cross_entropy"] = "cross_entropy"


class PolicyGradientObjectiveConfig(AdvantageConfig):
    """L = −E[Â log π(a | o)], for reinforcement learning."""

    model_config = _STRICT

    name: Literal["policy_gradient"] = "policy_gradient"


ObjectiveConfig = Annotated[
    SquaredErrorConfig | CrossEntropyConfig | PolicyGradientObjectiveConfig, Field(discriminator="name")
]


class Learnt(NamedTuple):
    """An objective with what belongs to it.

    Attributes:
        network: whose weights the inner loop changes.
        objective: the loss of a task.
        loop: the inner loop that fits them.
        units: what the objective measures of observations and rewards, part of a learner's state.
        measure: updates the units by a batch of trials, of which it gets the own shards.
        on_policy: whether an inner step needs actions that the weights of just this step chose.
    """

    network: RegressionNetwork | ImageClassifier | PolicyNetwork
    objective: Objective
    loop: type[InnerLoop]
    units: nn.Module
    measure: Callable[[Sequence[Trial], Shards], None]
    on_policy: bool


def learnt_from(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    hidden_sizes: list[int],
    config: Any,
) -> Learnt:
    """Return the objective that a config describes, with a new network.

    Args:
        observation_space: of one environment.
        action_space: of one environment.
        hidden_sizes: units in each hidden layer of the network.
        config: one of the choices of ``ObjectiveConfig``.

    Raises:
        UserError: for spaces that do not fit the objective.
    """
    return _LEARNT[type(config)](observation_space, action_space, hidden_sizes, config)


def _squared_error(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    hidden_sizes: list[int],
    config: SquaredErrorConfig,
) -> Learnt:
    network = regression_network(observation_space, action_space, hidden_sizes, config.activation)
    return Learnt(network, SquaredError(observation_space), InnerLoop, nn.Module(), _nothing, on_policy=False)


def _cross_entropy(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    hidden_sizes: list[int],
    config: CrossEntropyConfig,
) -> Learnt:
    if hidden_sizes:
        raise UserError(
            f"agent.hidden_sizes: expected [] with objective cross_entropy, got {hidden_sizes}; the network "
            "has convolutions and one linear layer: use agent.hidden_sizes=[]"
        )
    network = classifier(observation_space, action_space, config)
    objective = CrossEntropy(observation_space)
    return Learnt(network, objective, loop_of(config), nn.Module(), _nothing, on_policy=False)


def _policy_gradient(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    hidden_sizes: list[int],
    config: PolicyGradientObjectiveConfig,
) -> Learnt:
    network = policy_network(observation_space, action_space, hidden_sizes, config)
    objective = PolicyGradient(observation_space, network, config)
    return Learnt(network, objective, InnerLoop, objective.units, objective.measure, on_policy=True)


def _nothing(trials: Sequence[Trial], shards: Shards) -> None:
    """Measure nothing."""


_LEARNT: Mapping[type[BaseModel], Callable[..., Learnt]] = {
    SquaredErrorConfig: _squared_error,
    CrossEntropyConfig: _cross_entropy,
    PolicyGradientObjectiveConfig: _policy_gradient,
}
