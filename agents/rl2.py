"""RL²: a recurrent agent whose activations are the learning algorithm, trained by PPO on whole trials.

Source: Duan et al. 2016, *RL²: Fast Reinforcement Learning via Slow Reinforcement Learning*
(arXiv 1611.02779). The paper's "first-order TRPO" is, in its authors' launchers, PPO's clipped surrogate.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import gymnasium as gym
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rl2meta.agents.numbers import Count, Fraction, NonNegative, Positive, linear
from rl2meta.agents.rewards import RewardSignal, masked_mean, reward_signal, standardised
from rl2meta.errors import UserError
from rl2meta.images import ImageEncoder, is_image
from rl2meta.learner_state import load_state, seeded, state_of
from rl2meta.networks import ActionDistribution, LSTMState, RecurrentCore, action_head, mlp
from rl2meta.returns import gae
from rl2meta.spaces import encoding
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory, Trial


class RL2Config(BaseModel):
    """The hyper-parameters of RL²; those with a value at the start and one at the end move linearly."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    embedding_sizes: list[Count] = Field(
        [], description="units in each ReLU layer between input and LSTM; none by default"
    )
    previous_observation: bool = Field(
        False, description="show o_{t-1} beside a_{t-1} and r_{t-1}: what they were seen and earned in"
    )
    hidden_size: Count = Field(48, description="units in each LSTM layer")
    num_layers: Annotated[int, Field(ge=1, le=100)] = Field(1, description="LSTM layers")
    learning_rate: Positive = Field(1e-2, description="Adam's step size at the start")
    final_learning_rate: NonNegative = Field(0.0, description="and at the end")
    entropy_coefficient: NonNegative = Field(0.05, description="weight of the entropy bonus at the start")
    final_entropy_coefficient: NonNegative = Field(0.0, description="and at the end")
    value_coefficient: NonNegative = Field(0.05, description="weight of the value loss")
    initial_deviation: Positive = Field(
        1.0, description="standard deviation of continuous actions, in their own units, at the start"
    )
    discount: Fraction = Field(1.0, description="γ, across the episodes of a trial, at the start")
    final_discount: Fraction | None = Field(None, description="and at the end; null for no change")
    gae_trace: Fraction = Field(0.95, description="λ of the advantage estimates")
    clip_range: Positive = Field(0.2, description="ε of PPO's clipped surrogate")
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(3, description="passes over each batch of trials")
    minibatches: Count = Field(2, description="minibatches of whole trials in a pass")
    max_gradient_norm: Positive = Field(0.5, description="longer gradients are scaled down to this")
    reward_signal: RewardSignal = Field(
        "auto",
        description="what the loss takes for reward: as sampled, its expectation, or minus the regret; "
        "auto is the last that the family emits; the agent's input is the sampled reward in any case",
    )


class RL2Carry(NamedTuple):
    """What an RL² agent has learnt in the trial: the LSTM's state; its random stream; what it saw last."""

    state: LSTMState
    generator: torch.Generator
    seen: Tensor


class RecurrentActorCritic(nn.Module):
    """(o_t, a_{t-1}, r_{t-1}, d_{t-1}) -> embedding, if there is one -> LSTM -> policy and value.

    The value is given per step that remains of the trial, in units of ``reward_scale`` (which the learner
    measures on its first batch, so that one learning rate serves rewards of any unit). A return falls with
    the steps that remain; a network that had to count them first would learn nothing else for a long time.

    Where o_t is a picture, the LSTM gets an ``ImageEncoder``'s features of it.
    """

    reward_scale: Tensor

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], config: RL2Config
    ) -> None:
        super().__init__()
        self._observation = encoding(observation_space)
        self.encoder = ImageEncoder(observation_space) if is_image(observation_space) else None
        if self.encoder is not None and config.previous_observation:
            raise UserError(
                "agent.previous_observation: expected false where observations are pictures, got true; leave "
                "it out"
            )
        self._observed = self._observation.size
        self.recalled = self._observed if config.previous_observation else 0
        seen = self.encoder.out_features if self.encoder else self._observed + self.recalled
        in_features = seen + encoding(action_space).size + 2
        self.embedding = mlp(in_features, config.embedding_sizes, nn.ReLU)
        embedded = [in_features, *config.embedding_sizes][-1]
        self.core = RecurrentCore(embedded, config.hidden_size, config.num_layers)
        self.policy = action_head(action_space, config.hidden_size, config.initial_deviation)
        self.value = nn.Linear(config.hidden_size, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.register_buffer("reward_scale", torch.zeros(()))

    def inputs(self, step: TimeStep, seen: Tensor | None = None) -> Tensor:
        """Return the network's input, flat: pictures are still their pixels. The observation comes first.

        Args:
            step: time steps of whole trials [T, B, ...]; or of one step [B, ...], and then
            seen: what is recalled of the step before, [B, recalled]; zeros at a trial's start.
        """
        observation = self._observation.encode(step.observation)
        if seen is None:
            recalled = observation[..., : self.recalled]
            seen = torch.cat([torch.zeros_like(recalled[:1]), recalled[:-1]])
        flags = torch.stack([step.reward, step.first.float()], dim=-1)
        return torch.cat([observation, seen, step.action, flags], dim=-1)

    def perceive(self, inputs: Tensor) -> Tensor:
        """Return what the LSTM takes of ``inputs``: features of the pixels and the rest, embedded."""
        if self.encoder is not None:
            pixels, rest = inputs[..., : self._observed], inputs[..., self._observed :]
            inputs = torch.cat([self.encoder(pixels), rest], dim=-1)
        embedded: Tensor = self.embedding(inputs)
        return embedded

    def forward(self, inputs: Tensor) -> tuple[ActionDistribution, Tensor]:
        """Run whole trials, ``inputs`` [T, B, ...] -> π and scaled value, [T, B]."""
        features = self.core(self.perceive(inputs))
        return self.policy(features), self.value(features).squeeze(-1)


class RL2Agent:
    """Acts by one recurrent step; adapting is nothing, for the activations adapt as it acts."""

    phase = Phase(episodes=None)

    def __init__(self, network: RecurrentActorCritic) -> None:
        self.network = network

    def begin(self, num_tasks: int, generator: torch.Generator) -> RL2Carry:
        """Return zero states."""
        state = self.network.core.begin(num_tasks)
        return RL2Carry(state, generator, state[0].new_zeros(num_tasks, self.network.recalled))

    def act(self, carry: RL2Carry, step: TimeStep) -> tuple[Choice, RL2Carry]:
        """Advance the LSTM and sample from its policy."""
        inputs = self.network.inputs(step, carry.seen)
        features, state = self.network.core.step(self.network.perceive(inputs), carry.state)
        policy: ActionDistribution = self.network.policy(features)
        action = policy.sample(carry.generator)
        value = self.network.value(features).squeeze(-1)
        choice = Choice(action, policy.log_prob(action), policy.mode(), value)
        return choice, carry._replace(state=state, seen=inputs[:, : self.network.recalled])

    def adapt(self, carry: RL2Carry, trajectory: Trajectory) -> RL2Carry:
        """Return the carry as it is."""
        return carry


class _Batch(NamedTuple):
    """Whole trials to learn from, time-major [T, B, ...]."""

    inputs: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    value_target: Tensor
    mask: Tensor

    def trials(self, index: Tensor) -> "_Batch":
        return _Batch(*(field[:, index] for field in self))


class RL2Learner:
    """PPO on whole trials, with backpropagation through time over all of each trial.

        L = −E[min(ρA, clip(ρ, 1−ε, 1+ε)A)] + c_v E[(v − v_target)²] − c_e E[H(π)]

    with ρ = π(a)/π_old(a). Advantages flow across the ends of episodes and stop at the trial's end alone:
    what an episode teaches is worth what it earns in the next.

    Args:
        observation_space, action_space: of one environment.
        config: hyper-parameters.
        device: where the network lives.
        seed: of the initial weights, the same on every device.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: RL2Config,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.config = config
        network = seeded(lambda: RecurrentActorCritic(observation_space, action_space, config), seed)
        self.network = network.to(device)
        self.agent = RL2Agent(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate, fused=True)

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> dict[str, float]:
        """Learn from one batch of trials: ``epochs`` passes in minibatches of whole trials."""
        (trajectory,) = trial.phases
        batch = self._batch(trajectory, progress)
        cfg = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = linear(cfg.learning_rate, cfg.final_learning_rate, progress)
        entropy_weight = linear(cfg.entropy_coefficient, cfg.final_entropy_coefficient, progress)
        steps = [self._step(part, entropy_weight) for part in self._minibatches(batch, generator)]
        means = torch.stack([torch.stack(list(step.values())) for step in steps]).mean(dim=0).tolist()
        return dict(zip(steps[0], means, strict=True))

    def _batch(self, trajectory: Trajectory, progress: float = 0.0) -> _Batch:
        mask = trajectory.mask.float()
        if trajectory.value is None:
            raise ValueError(
                "expected a trial that an RL2Agent lived, which records its values, got one without"
            )
        reward = reward_signal(trajectory, self.config.reward_signal) * mask
        # γ everywhere, also where an episode ends; 0 where the trial ends, before padding.
        gamma = linear(self.config.discount, self.config.final_discount, progress)
        discount = gamma * torch.cat([mask[1:], torch.zeros_like(mask[:1])])
        remaining = _discounted_lengths(trajectory.steps_left(), gamma)
        value = trajectory.value * mask * remaining * self.network.reward_scale
        advantage = gae(reward, discount, value, self.config.gae_trace)
        per_step = (advantage + value) / remaining
        self._measure_scale(per_step, mask)
        return _Batch(
            inputs=self.network.inputs(trajectory.inputs),
            action=trajectory.action,
            log_prob=trajectory.log_prob,
            advantage=standardised(advantage, mask),
            value_target=per_step / self.network.reward_scale.clamp(min=1e-8),
            mask=mask,
        )

    def _measure_scale(self, reward: Tensor, mask: Tensor) -> None:
        """Set the value's unit once, on the first batch that pays: the mean size of the return per step."""
        scale = self.network.reward_scale
        scale.copy_(torch.where(scale == 0, masked_mean(reward.abs(), mask), scale))

    def _minibatches(self, batch: _Batch, generator: torch.Generator) -> Iterator[_Batch]:
        num_trials = batch.mask.shape[1]
        for _ in range(self.config.epochs):
            order = torch.randperm(num_trials, generator=generator).to(batch.mask.device)
            for index in order.chunk(self.config.minibatches):
                yield batch.trials(index)

    def _step(self, batch: _Batch, entropy_weight: float) -> dict[str, Tensor]:
        policy, value = self.network(batch.inputs)
        log_ratio = policy.log_prob(batch.action) - batch.log_prob
        policy_loss = -masked_mean(
            clipped_surrogate(log_ratio, batch.advantage, self.config.clip_range), batch.mask
        )
        value_loss = masked_mean((value - batch.value_target).square(), batch.mask)
        entropy = masked_mean(policy.entropy(), batch.mask)
        loss = policy_loss + self.config.value_coefficient * value_loss - entropy_weight * entropy
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()
        # E[(ρ − 1) − log ρ] estimates KL(π_old ‖ π) without ever being negative.
        kl = masked_mean(log_ratio.expm1() - log_ratio, batch.mask)
        metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "kl": kl}
        return {name: metric.detach() for name, metric in metrics.items()} | {"gradient_norm": norm}

    def state_dict(self) -> dict[str, Tensor]:
        """Return network and optimiser as named tensors."""
        return state_of(self.network, self.optimizer)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take on network and optimiser; names and shapes must match exactly."""
        load_state(state, self.network, self.optimizer)


def _discounted_lengths(steps: Tensor, gamma: float) -> Tensor:
    """Return Σ_{k<n} γᵏ for each number n of steps, at least 1."""
    n = steps.clamp(min=1)
    if gamma == 1.0:
        return n.float()
    return ((1.0 - gamma ** n.double()) / (1.0 - gamma)).float()


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Return min(ρA, clip(ρ, 1−ε, 1+ε)A) elementwise, with ρ = exp(log_ratio).

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.min(ratio * advantage, clipped * advantage)
