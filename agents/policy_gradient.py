"""Policy gradients on the steps of a phase: the objective of MAML's inner steps."""

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
    """The settings of inner steps by policy gradients."""

    initial_deviation: Positive = Field(
        1.0,
        description="standard deviation of continuous actions at the start of training, in the unit of the "
        "actions",
    )
    discount: Fraction = Field(0.99, description="discount γ within an episode")
    gae_trace: Fraction = Field(1.0, description="λ of generalised advantage estimation")
    baseline: bool = Field(
        True,
        description="subtract from returns a linear baseline, fitted to each task and phase; use false for "
        "phases of very few steps, where the fit would explain all returns",
    )
    standardise: bool = Field(
        True,
        description="scale the advantages of each task to mean 0 and standard deviation 1; false keeps "
        "their size, which may tell the agent something about the task",
    )


def vector_size(observation_space: gym.Space[Any]) -> int:
    """Return the length of an encoded observation.

    Raises:
        UserError: for images: MAML's fully connected networks have no encoder for them.
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
        """Return [N, rows, P] for observations [N, rows, in_features] of N tasks with their own weights."""
        features = stacked(self.trunk, under("trunk.", weights), observation)  # [N, rows, features]
        return self.head.stacked(under("head.", weights), features)  # [N, rows, P]


class PolicyGradient:
    """The inner loop's objective for reinforcement learning: L = −E[Â log π(a | o)], with sampled rewards.

    A linear baseline is fitted to the returns of a phase and subtracted from them; then the advantages are
    standardised over the steps of the task. Both happen once per phase, not again in each try of a line
    search. A baseline that is fitted to the same steps is biased towards their returns; with few features
    this bias is much smaller than the variance that the baseline removes. In a phase of a single pull the
    baseline would explain the whole return: use ``baseline: false`` and ``standardise: false``, so Â = G.

    Args:
        observation_space: of one environment.
        network: determines the dtype and the kind of action distribution.
        config: discount, λ, and how to compute advantages.
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
        """Sample an action from the policy in each row."""
        policy: ActionDistribution = self.distribution(outputs)
        action = policy.sample(generator)
        return Choice(action, policy.mode(), {"log_prob": policy.log_prob(action)})

    def rows(self, trajectory: Trajectory, lanes: int) -> Rows:
        """Return the rows of a phase, with the advantages of its sampled rewards."""
        return self.rows_of(trajectory, lanes, trajectory.reward, self.config.discount)

    def _refuse_too_few(self, rows: int) -> None:
        if rows < 2 and (self.config.baseline or self.config.standardise):
            raise UserError(
                "agent.episodes_per_phase: expected more than one step in a phase, got one, which a baseline "
                "explains completely; use more episodes, or agent.baseline=false agent.standardise=false"
            )

    def rows_of(self, trajectory: Trajectory, lanes: int, reward: Tensor, discount: float) -> Rows:
        """Return the rows of a phase, with the advantages of a given reward [T, num_tasks × lanes]."""
        self._refuse_too_few(len(trajectory.mask) * lanes)
        observation = self.encode(trajectory.inputs.observation)  # [T, num_tasks × lanes, size]
        mask = trajectory.mask.to(self._dtype)  # [T, num_tasks × lanes]
        # Returns stop where an episode ends: within a phase, an episode does not change later episodes.
        flow = discount * mask * ~trajectory.last  # [T, num_tasks × lanes]
        reward = reward.to(self._dtype) * mask
        advantage = self._advantage(observation, reward, flow, mask, lanes, trajectory.horizon)
        return Rows(  # [T, num_tasks × lanes, ...] -> [num_tasks, lanes × T, ...]
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
        value = torch.zeros_like(reward)  # [T, num_tasks × lanes]
        if self.config.baseline:
            returns = discounted_returns(reward, flow)
            # [T, num_tasks × lanes, ...] -> [T, num_tasks, lanes, ...]
            fields = [by_lane(field, lanes) for field in (observation, returns, mask)]
            fitted = linear_baseline(fields[0], fields[1], fields[2], horizon)  # [T, num_tasks, lanes]
            value = fitted.flatten(1, 2) * mask  # [T, num_tasks × lanes]
        advantage = gae(reward, flow, value, self.config.gae_trace)
        if not self.config.standardise:
            return advantage
        # over the steps of each task: [T, num_tasks, lanes] -> [T, num_tasks × lanes]
        return standardised(by_lane(advantage, lanes), by_lane(mask, lanes), dim=(0, 2)).flatten(1, 2)

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Return −Σ w Â log π(a | o)."""
        policy: ActionDistribution = self.distribution(outputs)
        return -(rows.weight * rows.advantage * policy.log_prob(rows.label)).sum()  # [rows] -> []
