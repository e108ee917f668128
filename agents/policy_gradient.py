"""Policy gradients on the steps of a phase: the task as MAML's inner steps see it."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor, nn

from rl2meta.agents.linear_baseline import linear_baseline
from rl2meta.agents.maml import InnerConfig, Rows, by_lane, by_row, normalised
from rl2meta.agents.numbers import Fraction, Positive
from rl2meta.errors import UserError
from rl2meta.images import is_image
from rl2meta.learner_state import under
from rl2meta.networks import ActionDistribution, Tanh, action_head, mlp, stacked
from rl2meta.returns import discounted_returns, gae, standardised
from rl2meta.spaces import encoding
from rl2meta.trial import Choice, Trajectory


class PolicyGradientConfig(InnerConfig):
    """The settings of inner steps that follow a policy gradient."""

    initial_deviation: Positive = Field(
        1.0, description="standard deviation of continuous actions, in their own units, at the start"
    )
    discount: Fraction = Field(0.99, description="γ, within an episode")
    gae_trace: Fraction = Field(1.0, description="λ of the advantage estimates")
    baseline: bool = Field(
        True,
        description="subtract a linear baseline, fitted to the phase of a task; false takes returns as they "
        "are, for phases of so few steps that the fit would explain them away",
    )
    standardise: bool = Field(
        True,
        description="give the advantages of a task mean 0 and deviation 1, whatever the unit of the reward; "
        "false keeps their size, which may tell something of the task",
    )


def vector_size(observation_space: gym.Space[Any]) -> int:
    """Return the length of an encoded observation.

    Raises:
        UserError: for pictures, for which MAML's fully connected networks have no encoder.
        TypeError: for spaces other than Discrete and Box.
    """
    if is_image(observation_space):
        raise UserError(
            f"expected vector observations, got an image {observation_space}; agent rl2 takes images, or "
            "flatten and scale them with gymnasium.wrappers"
        )
    return encoding(observation_space).size


class PolicyNetwork(nn.Module):
    """Encoded observation -> tanh layers -> the parameters of an action distribution."""

    def __init__(
        self, in_features: int, action_space: gym.Space[Any], hidden_sizes: list[int], deviation: float = 1.0
    ) -> None:
        super().__init__()
        self.trunk = mlp(in_features, hidden_sizes, Tanh)
        self.head = action_head(action_space, hidden_sizes[-1] if hidden_sizes else in_features, deviation)

    def forward(self, observation: Tensor) -> Tensor:
        """Return [..., P] for observations [..., in_features]."""
        return self.head.parameters_of(self.trunk(observation))

    def stacked(self, weights: Mapping[str, Tensor], observation: Tensor) -> Tensor:
        """Return [N, rows, P] for observations [N, rows, in_features] of N tasks, each by its own weights."""
        features = stacked(self.trunk, under("trunk.", weights), observation)
        return self.head.stacked(under("head.", weights), features)


class PolicyGradient:
    """A task as its inner steps see it: L = −E[Â log π(a | o)], of sampled rewards.

    Advantages are those of the phase itself: a linear baseline is fitted to its returns, once, before it is
    subtracted from them, and not again when a line search asks; then they are standardised over the task's
    steps. What was fitted on the same steps is a little too close to their returns; with a handful of
    features that is far less than the variance that it removes. Of a single pull it would leave nothing:
    ``baseline: false`` and ``standardise: false`` take Â = G.

    Args:
        observation_space, action_space: of one environment.
        network: gives dtype and kind of distribution.
        config: discounts.
    """

    def __init__(
        self, observation_space: gym.Space[Any], network: PolicyNetwork, config: PolicyGradientConfig
    ) -> None:
        self._observation = encoding(observation_space)
        self._dtype = network.head.linear.weight.dtype
        self.distribution = network.head.distribution
        self.config = config

    def encode(self, observation: Tensor) -> Tensor:
        """Return the network's input."""
        return self._observation.encode(observation).to(self._dtype)

    def choose(self, outputs: Tensor, generator: torch.Generator) -> Choice:
        """Sample from the policy."""
        policy: ActionDistribution = self.distribution(outputs)
        action = policy.sample(generator)
        return Choice(action, policy.mode(), {"log_prob": policy.log_prob(action)})

    def rows(self, trajectory: Trajectory, lanes: int) -> Rows:
        """Return the phase with the advantages of its sampled rewards."""
        return self.rows_of(trajectory, lanes, trajectory.reward, self.config.discount)

    def _refuse_too_few(self, rows: int) -> None:
        if rows < 2 and (self.config.baseline or self.config.standardise):
            raise UserError(
                "agent.episodes_per_phase: expected more than one step in a phase, got one, which a baseline "
                "explains away; take more, or agent.baseline=false agent.standardise=false"
            )

    def rows_of(self, trajectory: Trajectory, lanes: int, reward: Tensor, discount: float) -> Rows:
        """Return the phase with the advantages of any reward [T, B]."""
        self._refuse_too_few(len(trajectory.mask) * lanes)
        observation = self.encode(trajectory.inputs.observation)
        mask = trajectory.mask.to(self._dtype)
        # MAML cuts where an episode ends: what one teaches is worth nothing in the next, but through θ'.
        flow = discount * mask * ~trajectory.last
        reward = reward.to(self._dtype) * mask
        advantage = self._advantage(observation, reward, flow, mask, lanes, trajectory.horizon)
        return Rows(
            observation=by_row(observation, lanes),
            label=by_row(trajectory.action, lanes),
            advantage=by_row(advantage, lanes),
            weight=normalised(by_row(mask, lanes)),
        )

    def _advantage(
        self,
        observation: Tensor,
        reward: Tensor,
        flow: Tensor,
        mask: Tensor,
        lanes: int,
        horizon: int | None,
    ) -> Tensor:
        value = torch.zeros_like(reward)
        if self.config.baseline:
            returns = discounted_returns(reward, flow)
            fields = [by_lane(field, lanes) for field in (observation, returns, mask)]
            fitted = linear_baseline(fields[0], fields[1], fields[2], horizon)
            value = fitted.flatten(1, 2) * mask
        advantage = gae(reward, flow, value, self.config.gae_trace)
        if not self.config.standardise:
            return advantage
        return standardised(by_lane(advantage, lanes), by_lane(mask, lanes), dim=(0, 2)).flatten(1, 2)

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Return −Σ w Â log π(a | o)."""
        policy: ActionDistribution = self.distribution(outputs)
        return -(rows.weight * rows.advantage * policy.log_prob(rows.label)).sum()
