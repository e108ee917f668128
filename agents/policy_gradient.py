"""Policy gradients on the steps of a phase: the objective of MAML's inner steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor, nn

from rl2meta.agents.linear_baseline import linear_baseline
from rl2meta.agents.maml import InnerConfig
from rl2meta.agents.numbers import Fraction, Positive
from rl2meta.agents.rows import Rows, by_lane, by_row, legal_rows, normalised
from rl2meta.beliefs import Told, policy_told
from rl2meta.errors import UserError
from rl2meta.images import is_image
from rl2meta.layers import Chain, is_tanh_chain, named_layers, stacked_chain
from rl2meta.learner_state import under
from rl2meta.networks import LOOKED_UP, ActionDistribution, Lookup, Tanh, action_head, mlp
from rl2meta.returns import discounted_lengths, discounted_returns, gae, masked_mean, standardised
from rl2meta.shards import ALONE, Shards
from rl2meta.spaces import encoding, input_encoding, num_looked_up
from rl2meta.trial import Choice, Trajectory, Trial
from rl2meta.units import RAW, ObservationUnits, RewardUnits, UnitsConfig, action_units


class AdvantageConfig(UnitsConfig):
    """The settings of a policy and of the advantages that its gradient follows."""

    initial_deviation: Positive = Field(
        1.0,
        description="standard deviation of continuous actions at the start of training, in the policy's "
        "unit: with action_units=normalised a fraction of half of the width between the bounds",
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


class PolicyGradientConfig(InnerConfig, AdvantageConfig):
    """The settings of MAML's inner steps by policy gradients."""


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


class InputUnits(nn.Module):
    """The units of observations and rewards.

    Attributes:
        rewards: None if rewards are raw.
    """

    def __init__(self, observation_space: gym.Space[Any], config: UnitsConfig) -> None:
        super().__init__()
        self.observations = ObservationUnits(observation_space, config.observation_units == "normalised")
        self.rewards = RewardUnits() if config.reward_units == "measured" else None

    def scaled(self, reward: Tensor) -> Tensor:
        """Return rewards in units of their scale; their zero stays: it may decide how long to play."""
        if self.rewards is None:
            return reward
        return reward / torch.where(self.rewards.scale > 0, self.rewards.scale, 1.0)


class PolicyNetwork(nn.Module):
    """Encoded observation -> tanh layers -> the parameters of an action distribution.

    Args:
        in_features: length of an encoded observation, or of what the table gives in its place.
        action_space: of one environment.
        hidden_sizes: units in each layer.
        deviation: the initial standard deviation of continuous actions.
        units: of continuous actions.
        rows: of the table in which observations are looked up; 0: they are seen as they are.
    """

    def __init__(
        self,
        in_features: int,
        action_space: gym.Space[Any],
        hidden_sizes: list[int],
        deviation: float = 1.0,
        units: UnitsConfig = RAW,
        rows: int = 0,
    ) -> None:
        super().__init__()
        table = [Lookup(rows, in_features)] if rows else []
        self.trunk = nn.Sequential(*table, *mlp(in_features, hidden_sizes, Tanh))
        features = hidden_sizes[-1] if hidden_sizes else in_features
        self.head = action_head(action_space, features, deviation, action_units(action_space, units))

    @property
    def is_chain(self) -> bool:
        """Whether compiled kernels can run the network; an observation that is looked up comes before any."""
        return is_tanh_chain(self._layers())

    def forward(self, observation: Tensor) -> Tensor:
        """Return [..., P] for observations [..., in_features]."""
        return self.head.parameters_of(self.trunk(observation))

    def stacked(self, weights: Mapping[str, Tensor], observation: Tensor) -> Tensor:
        """Return [N, rows, P] for observations [N, rows, in_features] of N tasks with their own weights."""
        outputs = stacked_chain(self._layers(), weights, observation)
        return self.head.stacked_parameters(under("head.", weights), outputs)  # [N, rows, P]

    def _layers(self) -> Chain:
        return [*named_layers(self.trunk, "trunk."), ("head.linear.", self.head.linear)]


def policy_network(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    hidden_sizes: list[int],
    config: AdvantageConfig,
) -> PolicyNetwork:
    """Return the network of a policy for the spaces of one environment.

    Raises:
        UserError: for image observations.
    """
    rows = num_looked_up(observation_space)
    size = LOOKED_UP if rows else vector_size(observation_space)
    return PolicyNetwork(size, action_space, hidden_sizes, config.initial_deviation, config, rows)


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
        config: discount, λ, units, and how to compute advantages.

    Attributes:
        units: of observations and rewards; what the learner measures of them is part of its state.
    """

    def __init__(
        self, observation_space: gym.Space[Any], network: PolicyNetwork, config: AdvantageConfig
    ) -> None:
        self._observation = input_encoding(observation_space)
        self._dtype = network.head.linear.weight.dtype
        self.distribution = network.head.distribution
        self._is_number = num_looked_up(observation_space) > 0
        self.config = config
        self.units = InputUnits(observation_space, config)

    def encode(self, observation: Tensor) -> Tensor:
        """Return the network's input."""
        encoded: Tensor = self.units.observations(self._observation.encode(observation))
        return encoded.to(self._dtype)

    def measure(self, trials: Sequence[Trial], shards: Shards = ALONE) -> None:
        """Measure the units of observations and rewards of a batch; ``trials`` are its own shards."""
        for phases in zip(*(trial.phases for trial in trials), strict=True):  # one for each own shard
            masks = [phase.mask for phase in phases]
            if self.units.observations.measured:
                seen = [self._observation.encode(phase.inputs.observation) for phase in phases]
                self.units.observations.measure(seen, masks, shards)  # [T, B, size] each
            if self.units.rewards is not None:
                self.units.rewards.measure([phase.reward for phase in phases], masks, shards)

    def choose(self, outputs: Tensor, generator: torch.Generator) -> Choice:
        """Sample an action from the policy in each row."""
        policy: ActionDistribution = self.distribution(outputs)
        return Choice(policy.sample(generator), policy.mode())

    def tell(self, outputs: Tensor) -> Told:
        """Tell the policy."""
        return policy_told(self.distribution(outputs))

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
        # With a far zero of the rewards, float32 would lose small differences in sums of them.
        dtype = self._dtype if self.units.rewards is None else torch.float64
        mask = trajectory.mask.to(dtype)  # [T, num_tasks × lanes]
        # Returns stop where an episode ends: within a phase, an episode does not change later episodes.
        flow = discount * mask * ~trajectory.last  # [T, num_tasks × lanes]
        reward = self.units.scaled(reward.to(dtype)) * mask
        usual = self._usual_returns(reward, mask, lanes, trajectory.horizon, discount)
        # A number says nothing to a linear baseline, which then knows only the time.
        known = observation[..., :0] if self._is_number else observation
        advantage = self._advantage(known.to(dtype), reward, flow, mask, lanes, trajectory.horizon, usual)
        return Rows(  # [T, num_tasks × lanes, ...] -> [num_tasks, lanes × T, ...]
            observation=by_row(observation, lanes),
            label=by_row(trajectory.action, lanes),
            advantage=by_row(advantage.to(self._dtype), lanes),
            weight=normalised(by_row(mask.to(self._dtype), lanes)),
            legal=legal_rows(trajectory, lanes),
        )

    def _usual_returns(
        self, reward: Tensor, mask: Tensor, lanes: int, horizon: int | None, discount: float
    ) -> Tensor | float:
        """Return the returns of a task's mean reward until the horizon, [T, num_tasks × lanes].

        A baseline that begins from them does not depend on the zero of the rewards, in spite of its ridge. It
        is 0 where rewards are raw.
        """
        if self.units.rewards is None:
            return 0.0
        left = (horizon or len(mask)) - torch.arange(len(mask), device=mask.device)  # [T]
        lengths = discounted_lengths(left, discount).to(reward.dtype).unsqueeze(1)  # [T, 1]
        mean = masked_mean(by_lane(reward, lanes), by_lane(mask, lanes), dim=(0, 2))  # [1, num_tasks, 1]
        return lengths * mean.expand(1, -1, lanes).flatten(1)  # [T, num_tasks × lanes]

    def _advantage(
        self,
        observation: Tensor,
        reward: Tensor,
        flow: Tensor,
        mask: Tensor,
        lanes: int,
        horizon: int | None,
        usual: Tensor | float,
    ) -> Tensor:
        value = torch.zeros_like(reward)  # [T, num_tasks × lanes]
        if self.config.baseline:
            returns = discounted_returns(reward, flow) - usual
            # [T, num_tasks × lanes, ...] -> [T, num_tasks, lanes, ...]
            fields = [by_lane(field, lanes) for field in (observation, returns, mask)]
            fitted = linear_baseline(fields[0], fields[1], fields[2], horizon)  # [T, num_tasks, lanes]
            value = (fitted.flatten(1, 2) + usual) * mask  # [T, num_tasks × lanes]
        advantage = gae(reward, flow, value, self.config.gae_trace)
        if not self.config.standardise:
            return advantage
        # over the steps of each task: [T, num_tasks, lanes] -> [T, num_tasks × lanes]
        return standardised(by_lane(advantage, lanes), by_lane(mask, lanes), dim=(0, 2)).flatten(1, 2)

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Return −Σ w Â log π(a | o)."""
        policy: ActionDistribution = self.distribution(outputs)
        return -(rows.weight * rows.advantage * policy.log_prob(rows.label)).sum()  # [rows] -> []
