"""MAML for regression: inner steps on squared errors, outer steps by Adam (``outer_adam``).

The inner and the outer loop are the same as for every other agent. An example is an episode of one step: the
observation is x, the action is the prediction, and the family reveals the target after the action.

Source: Finn et al. 2017 (arXiv 1703.03400), algorithm 2 and section 5.1.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor, nn

from rl2meta.agents.maml import AT_TEST, InnerLoop, MetaWeights
from rl2meta.agents.numbers import Count, Positive
from rl2meta.agents.outer_adam import OuterAdam, OuterAdamConfig
from rl2meta.agents.policy_gradient import vector_size
from rl2meta.agents.rows import Rows, labelled_rows
from rl2meta.beliefs import Amounts, Told
from rl2meta.errors import UserError
from rl2meta.learner_state import seeded, under
from rl2meta.networks import Tanh, mlp, stacked
from rl2meta.spaces import encoding
from rl2meta.training import AgentKind
from rl2meta.trial import Choice, Trajectory

Activation = Literal["relu", "tanh"]


class MAMLRegressionConfig(OuterAdamConfig):
    """The hyper-parameters of MAML for regression."""

    hidden_sizes: list[Count] = Field([40, 40], description="units in each hidden layer")
    episodes_per_phase: Count = Field(
        10, description="number of examples in each phase of a trial; an inner step follows a phase"
    )
    inner_learning_rates: list[Positive] = Field(
        [0.01],
        min_length=1,
        description="α of the first, second, … inner step; later inner steps use the last α",
    )
    activation: Activation = Field("relu", description="function of the hidden layers: relu or tanh")


class SquaredError:
    """The inner loop's objective for supervised tasks: L = E[(f(x) − y)²]."""

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        self._observation = encoding(observation_space)

    def encode(self, observation: Tensor) -> Tensor:
        """Return the network's input."""
        return self._observation.encode(observation)

    def choose(self, outputs: Tensor, generator: torch.Generator) -> Choice:
        """Return the network's outputs as predictions, without exploration noise."""
        return Choice(outputs, outputs)

    def tell(self, outputs: Tensor) -> Told:
        """Tell the prediction."""
        return {"prediction": Amounts(outputs, "entry")}

    def rows(self, trajectory: Trajectory, lanes: int) -> Rows:
        """Return the examples of a phase.

        Raises:
            UserError: for a family that reveals no targets.
        """
        advice = "sinusoids, or use maml_trpo, or agent.objective=policy_gradient with reptile"
        return labelled_rows(trajectory, lanes, self.encode, advice)

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Return Σ w (f(x) − y)²."""
        return (rows.weight * (outputs - rows.label).square().sum(dim=-1)).sum()  # [rows, ...] -> []


class RegressionNetwork(nn.Module):
    """Encoded observation -> hidden layers -> prediction."""

    def __init__(
        self, in_features: int, out_features: int, hidden_sizes: list[int], activation: Activation = "relu"
    ) -> None:
        super().__init__()
        self.trunk = mlp(in_features, hidden_sizes, _ACTIVATIONS[activation])
        self.head = nn.Linear(hidden_sizes[-1] if hidden_sizes else in_features, out_features)

    def forward(self, observation: Tensor) -> Tensor:
        """Return [..., out_features] for observations [..., in_features]."""
        prediction: Tensor = self.head(self.trunk(observation))
        return prediction

    def stacked(self, weights: Mapping[str, Tensor], observation: Tensor) -> Tensor:
        """Return [N, rows, out_features] for N tasks; each task uses its own weights."""
        features = stacked(self.trunk, under("trunk.", weights), observation)
        return stacked(self.head, under("head.", weights), features)


def regression_network(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    hidden_sizes: list[int],
    activation: Activation,
) -> RegressionNetwork:
    """Return the network of a regression for the spaces of one environment; a prediction is an action.

    Raises:
        UserError: if actions are not vectors of numbers, or observations are images.
    """
    if not isinstance(action_space, gym.spaces.Box) or len(action_space.shape) != 1:
        raise UserError(
            f"agent.name: expected predictions, a Box of one axis, got the action space {action_space}; "
            "use maml_classification for numbers of classes, maml_trpo, or another agent.objective of reptile"
        )
    return RegressionNetwork(vector_size(observation_space), action_space.shape[0], hidden_sizes, activation)


def maml_regression_learner(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    config: MAMLRegressionConfig,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> OuterAdam:
    """Return the learner: Adam on the error after adaptation, min over θ of E_tasks E[(f_θ'(x) − y)²].

    Args:
        observation_space: of one environment.
        action_space: of one environment; a prediction is an action.
        config: hyper-parameters.
        device: where the weights live.
        seed: of the initial weights, the same on every device.

    Raises:
        UserError: if actions are not vectors of numbers, or observations are images.
    """
    spaces = observation_space, action_space
    network = seeded(lambda: regression_network(*spaces, config.hidden_sizes, config.activation), seed)
    meta = seeded(lambda: MetaWeights(network, config), seed).to(device)
    return OuterAdam(meta, InnerLoop(network, SquaredError(observation_space), config), config)


_ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": Tanh}

MAML_REGRESSION = AgentKind(
    "initial weights that adapt by a few gradient steps on squared errors, learnt by Adam",
    MAMLRegressionConfig,
    maml_regression_learner,
    AT_TEST,
    network=("activation",),
)
