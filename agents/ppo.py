"""PPO on whole trials: an agent that acts through any core, and its learner.

Source: Schulman et al. 2017, *Proximal Policy Optimization Algorithms* (arXiv 1707.06347), applied to trials
as in Duan et al. 2016 (arXiv 1611.02779). In their code, "first-order TRPO" is PPO's clipped surrogate.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from rl2meta.agents.actor_critic import ActorCritic, PPOAgent
from rl2meta.agents.all_actions import AllActions, all_action_advantages, spread
from rl2meta.agents.cores.core import Seen
from rl2meta.agents.numbers import Count, Fraction, NonNegative, Positive
from rl2meta.agents.privileged_critic import Known, PrivilegedCritic
from rl2meta.errors import UserError
from rl2meta.learner_state import load_state, state_of, under
from rl2meta.networks import Categorical
from rl2meta.returns import (
    RewardSignal,
    discounted_lengths,
    gae,
    masked_mean,
    reward_signal,
    standardised,
)
from rl2meta.training import linear
from rl2meta.trial import TimeStep, Trajectory, Trial, over_fields
from rl2meta.units import UnitsConfig, set_once


class PPOConfig(UnitsConfig):
    """The hyper-parameters of PPO; pairs of a value at the start and at the end change linearly."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    learning_rate: Positive = Field(1e-2, description="Adam's learning rate at the start of training")
    final_learning_rate: NonNegative = Field(0.0, description="Adam's learning rate at the end of training")
    warm_up: Fraction = Field(
        0.0, description="part of training in which the learning rate rises from 0 to its schedule"
    )
    entropy_coefficient: NonNegative = Field(
        0.05, description="weight of the entropy bonus at the start of training"
    )
    final_entropy_coefficient: NonNegative = Field(
        0.0, description="weight of the entropy bonus at the end of training"
    )
    value_coefficient: NonNegative = Field(0.05, description="weight of the value loss")
    initial_deviation: Positive = Field(
        1.0,
        description="standard deviation of continuous actions at the start of training, in the policy's "
        "unit: with action_units=normalised a fraction of half of the width between the bounds",
    )
    discount: Fraction = Field(
        1.0, description="discount γ at the start of training; it applies across the episodes of a trial"
    )
    final_discount: Fraction | None = Field(
        None, description="discount γ at the end of training; null: no change"
    )
    gae_trace: Fraction = Field(0.95, description="λ of generalised advantage estimation")
    clip_range: Positive = Field(0.2, description="ε of PPO's clipped surrogate")
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(
        3, description="number of passes over each batch of trials"
    )
    minibatches: Count = Field(2, description="number of minibatches in each pass; a trial is never split")
    max_gradient_norm: Positive = Field(
        0.5, description="maximum norm of the gradient; a longer gradient is scaled down to it"
    )
    surrogate: Literal["auto", "sampled", "all_actions"] = Field(
        "sampled",
        description="sampled: the advantage of the action taken; all_actions: the immediate regret by its "
        "expectation over all actions, for families that reveal the regret of every action, and only what "
        "follows by the action taken; auto: all_actions where the family allows it",
    )
    critic: Literal["head", "privileged"] = Field(
        "head",
        description="with all_actions, what estimates the future: head, the value head of the agent, or "
        "privileged, a network that also sees the regrets of all actions, in training only",
    )
    critic_learning_rate: Positive = Field(1e-3, description="Adam's learning rate of the privileged critic")
    critic_epochs: Count = Field(2, description="passes of the privileged critic over each batch of trials")
    reward_signal: RewardSignal = Field(
        "auto",
        description="reward in the loss: sampled, expected (its expectation), or regret (minus the regret); "
        "auto: the last of these that the family provides; the agent always observes the sampled reward",
    )


class Batch(NamedTuple):
    """A batch of whole trials for the loss, time-major [T, B, ...].

    Attributes:
        inputs: encoded.
        action, log_prob: taken, and their log π_old.
        advantage: of the actions taken.
        value_target, mask: of each step.
        log_probs, immediate: log π_old and the immediate advantage of every action, [T, B, A]; None if the
            advantage of the action taken is all there is.
    """

    inputs: TimeStep
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    value_target: Tensor
    mask: Tensor
    log_probs: Tensor | None = None
    immediate: Tensor | None = None

    def trials(self, index: Tensor) -> "Batch":
        """Return the trials at ``index``, [T, B, ...] -> [T, len(index), ...]."""
        part: Batch = over_fields(lambda field: field[:, index], self)
        return part


class PPO:
    """PPO on whole trials, with backpropagation through time over all of each trial.

        L = −E[min(ρA, clip(ρ, 1−ε, 1+ε)A)] + c_v E[(v − v_target)²] − c_e E[H(π)]

    with ρ = π(a)/π_old(a). Advantages continue across the ends of episodes and stop only at the end of the
    trial, so an action also gets credit for the rewards of later episodes.

    Where the regrets of all actions are known (``surrogate``), u = −regret and the first expectation becomes

        E Σₐ π_old(a) min(ρₐ Âₐ, clip(ρₐ, 1−ε, 1+ε) Âₐ) + E[min(ρF, clip(ρ, 1−ε, 1+ε)F)]

    with Âₐ = (uₐ − E u) / s, F = (G − W) / s, and s the spread of the immediate advantages (``all_actions``).

    Args:
        network: the agent's network, on the device where it learns.
        config: hyper-parameters.
        critic: estimates W; None for the value head of the network.
    """

    def __init__(
        self, network: ActorCritic, config: PPOConfig, critic: PrivilegedCritic | None = None
    ) -> None:
        self.network, self.config, self.critic = network, config, critic
        self.agent = PPOAgent(network)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> dict[str, float]:
        """Learn from one batch of trials: ``epochs`` passes in minibatches of whole trials."""
        (trajectory,) = trial.phases
        cfg = self.config
        gamma = linear(cfg.discount, cfg.final_discount, progress)
        if self._sees_all(trajectory):
            batch, told = self._all_action_batch(trajectory, gamma, generator)
        else:
            batch, told = self.batch(trajectory, progress), {}
        rate = linear(cfg.learning_rate, cfg.final_learning_rate, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (min(1.0, progress / cfg.warm_up + 0.01) if cfg.warm_up else 1.0)
        entropy_weight = linear(cfg.entropy_coefficient, cfg.final_entropy_coefficient, progress)
        length = trajectory.most_steps
        steps = [self.step(part, entropy_weight, length) for part in self.minibatches(batch, generator)]
        self._measure_inputs(trajectory)
        means = torch.stack([torch.stack(list(step.values())) for step in steps]).mean(dim=0).tolist()
        return dict(zip(steps[0], means, strict=True)) | told

    def batch(self, trajectory: Trajectory, progress: float = 0.0) -> Batch:
        """Return advantages and value targets for the phase of a trial of a ``PPOAgent``.

        The first batch with a reward other than 0 also sets ``reward_scale`` and, unless rewards are raw,
        ``reward_centre``.

        Raises:
            ValueError: if the notes of the agent lack ``log_prob`` or ``value``.
        """
        if not {"log_prob", "value"} <= trajectory.notes.keys():
            raise ValueError(
                "expected a trial whose agent noted log_prob and value, as PPOAgent does, got notes of "
                f"{sorted(trajectory.notes)}"
            )
        net, measured = self.network, self.network.reward_units is not None
        mask = trajectory.mask.float()  # [T, B]
        signal = reward_signal(trajectory, self.config.reward_signal)
        if measured:
            set_once(net.reward_centre, net.reward_scale, signal, trajectory.mask)
        dtype = torch.float64 if measured else torch.float32  # a far zero must not swallow small differences
        reward = signal.to(dtype) * mask
        # γ also where an episode ends; 0 at the last step of the trial, before the padding.
        gamma = linear(self.config.discount, self.config.final_discount, progress)
        discount = gamma * torch.cat([mask[1:], torch.zeros_like(mask[:1])])  # [T, B]
        remaining = discounted_lengths(trajectory.steps_left(), gamma)  # [T, B]
        value = trajectory.notes["value"].to(dtype) * mask * remaining * net.reward_scale
        value = value + mask * remaining * net.reward_centre.to(dtype)
        advantage = gae(reward, discount, value, self.config.gae_trace)
        per_step = (advantage + value) / remaining
        if not measured:
            self._measure_scale(per_step, mask)
        inputs = trajectory.inputs
        return Batch(
            inputs=net.in_units(inputs),  # [T, B, ...]
            action=trajectory.action,
            log_prob=trajectory.notes["log_prob"],
            advantage=standardised(advantage, mask).float(),
            value_target=((per_step - net.reward_centre) / net.reward_scale.clamp(min=1e-8)).float(),
            mask=mask,
        )

    def _sees_all(self, trajectory: Trajectory) -> bool:
        """Return whether to use the regrets of all actions."""
        wanted = self.config.surrogate
        revealed = "regrets" in trajectory.truth
        if wanted == "all_actions" and not revealed:
            raise UserError(
                "agent.surrogate: expected a family that reveals the regret of every action, got one that "
                f"reveals {sorted(trajectory.truth)}; use agent.surrogate=auto"
            )
        return wanted != "sampled" and revealed

    @torch.no_grad()
    def _judged(self, trajectory: Trajectory, inputs: TimeStep) -> tuple[Tensor, Tensor, Known]:
        """Return log π_old of all actions, the value head's W, and what a privileged critic knows."""
        net, seen = self.network, Seen(*inputs[:4], trajectory.most_steps)
        output = net.core(seen)
        policy, value = net.judged(output, inputs.legal)
        assert isinstance(policy, Categorical)
        scale = net.reward_scale.clamp(min=1e-8)
        regrets = trajectory.truth["regrets"] / scale
        known = Known(output.features, regrets, policy.log_probs.exp(), seen.elapsed)
        return policy.log_probs, value, known

    def _all_action_batch(
        self, trajectory: Trajectory, gamma: float, generator: torch.Generator
    ) -> tuple[Batch, dict[str, float]]:
        """Return immediate advantages of all actions and future ones of those taken; teach the critic."""
        mask, regrets = trajectory.mask.float(), trajectory.truth["regrets"]
        self._measure_scale(regrets.mean(dim=-1), mask)
        inputs = self.network.in_units(trajectory.inputs)
        log_probs, value, known = self._judged(trajectory, inputs)
        follows = torch.cat([mask[1:], torch.zeros_like(mask[:1])])  # [T, B]
        length = gamma * discounted_lengths(trajectory.steps_left() - 1, gamma) * follows
        if self.critic is not None:
            with torch.no_grad():
                value = self.critic(known)
        scale = self.network.reward_scale.clamp(min=1e-8)
        found = all_action_advantages(
            regrets, log_probs, value * length * scale, gamma * follows, self.config.gae_trace
        )
        target = found.returns / (length * scale).clamp(min=1e-8) * (length > 0)
        if self.critic is not None and gamma > 0:
            self.critic.learn(known, target, follows, generator)
        unit = spread(found.immediate, log_probs, mask) + 1e-8
        future = (found.future - masked_mean(found.future, follows)) * follows if gamma > 0 else found.future
        explained = _explained(found, follows)
        batch = Batch(
            inputs=inputs,
            action=trajectory.action,
            log_prob=trajectory.notes["log_prob"],
            advantage=future / unit,
            value_target=target,
            mask=mask,
            log_probs=log_probs,
            immediate=found.immediate / unit,
        )
        return batch, {"explained": explained}

    def _measure_scale(self, reward: Tensor, mask: Tensor) -> None:
        """Set the unit of the value once: the mean absolute return per step of the first paying batch."""
        scale = self.network.reward_scale
        scale.copy_(torch.where(scale == 0, masked_mean(reward.abs(), mask), scale))

    def _measure_inputs(self, trajectory: Trajectory) -> None:
        """Measure the units of the network's input after the steps, which must see what the agent saw."""
        net = self.network
        if net.reward_units is not None:
            net.reward_units.measure(trajectory.reward, trajectory.mask)
        if net.observation_units.measured:
            net.observation_units.measure(net.encode(trajectory.inputs.observation), trajectory.mask)

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Batch]:
        """Yield each trial once in every pass, in minibatches of random order."""
        num_trials = batch.mask.shape[1]
        for _ in range(self.config.epochs):
            order = torch.randperm(num_trials, generator=generator).to(batch.mask.device)
            for index in order.chunk(self.config.minibatches):
                yield batch.trials(index)  # [T, B, ...] -> [T, B / minibatches, ...]

    def step(self, batch: Batch, entropy_weight: float, trial_length: int | None = None) -> dict[str, Tensor]:
        """Take one gradient step; return the metrics of the minibatch."""
        inputs = batch.inputs
        policy, value = self.network(Seen(*inputs[:4], trial_length), inputs.legal)  # [T, B, ...] -> [T, B]
        log_ratio = policy.log_prob(batch.action) - batch.log_prob
        policy_loss = -masked_mean(
            clipped_surrogate(log_ratio, batch.advantage, self.config.clip_range), batch.mask
        )
        if batch.immediate is not None and batch.log_probs is not None:
            assert isinstance(policy, Categorical)
            gains = clipped_surrogate(
                policy.log_probs - batch.log_probs, batch.immediate, self.config.clip_range
            )
            policy_loss = policy_loss - masked_mean((batch.log_probs.exp() * gains).sum(dim=-1), batch.mask)
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
        """Return the states of network and optimiser as named tensors."""
        state = state_of(self.network, self.optimizer)
        critic = {} if self.critic is None else self.critic.state()
        return state | {f"critic.{name}": tensor for name, tensor in critic.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the states of network and optimiser; names and shapes must match exactly."""
        load_state(state, self.network, self.optimizer)
        if self.critic is not None:
            self.critic.load(under("critic.", state))


def _explained(found: AllActions, mask: Tensor) -> float:
    """Return the part of the variance of G that W explains, 1 − Var(G − W) / Var(G); 0 if G does not vary."""

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)).square(), mask)

    total = variance(found.returns)
    return float(torch.where(total > 0, 1 - variance(found.future) / total, 0.0))


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Return min(ρA, clip(ρ, 1−ε, 1+ε)A) elementwise, with ρ = exp(log_ratio).

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.min(ratio * advantage, clipped * advantage)
