"""PPO on whole trials: an agent that acts through any core, and its learner.

Source: Schulman et al. 2017, *Proximal Policy Optimization Algorithms* (arXiv 1707.06347), applied to trials
as in Duan et al. 2016 (arXiv 1611.02779). In their code, "first-order TRPO" is PPO's clipped surrogate.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl2meta.adam import Adam
from rl2meta.agents.all_actions import Given, all_action_surrogate, judged, sees_all
from rl2meta.agents.cores.core import Core, Output, Position, Seen
from rl2meta.agents.ppo_config import PPOConfig
from rl2meta.agents.privileged_critic import Known, PrivilegedCritic
from rl2meta.beliefs import Number, Told, policy_told
from rl2meta.kernels import compiled, threads_to_kernels
from rl2meta.learner_state import load_state, named_under, state_of, under
from rl2meta.networks import (
    ActionDistribution,
    Categorical,
    CategoricalHead,
    action_distribution,
    action_head,
    legal_only,
)
from rl2meta.returns import (
    clipped_surrogate,
    discounted_lengths,
    gae,
    masked_mean,
    reward_signal,
)
from rl2meta.shards import ALONE, Lost, Shards, set_gradients
from rl2meta.spaces import input_encoding
from rl2meta.training import WholeIsOneShard, clip_gradients, linear, set_rate
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory, Trial, over_fields
from rl2meta.units import RAW, ActionUnits, ObservationUnits, RewardUnits, UnitsConfig, action_units, set_once


class ActorCritic(nn.Module):
    """A core with two outputs: policy and value.

    The network predicts the value per remaining step of the trial, from ``reward_centre`` on and in units of
    ``reward_scale``. The learner measures them on its first batch, so the same learning rate works for
    rewards of any unit and, unless ``reward_units`` is raw, of any zero. Returns fall as fewer steps remain;
    without the division by the remaining steps, the network would first have to learn to count them, which
    takes long.

    Args:
        observation_space, action_space: of one environment.
        core: reads the trial.
        initial_deviation: the initial standard deviation of continuous actions.
        units: of observations, actions and rewards.
    """

    core: Core
    reward_scale: Tensor
    reward_centre: Tensor

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        core: Core,
        initial_deviation: float = 1.0,
        units: UnitsConfig = RAW,
    ) -> None:
        super().__init__()
        self.core = core
        self.encode = input_encoding(observation_space).encode
        self.observation_size = input_encoding(observation_space).size
        self.observation_units = ObservationUnits(observation_space, units.observation_units == "normalised")
        policy_units = action_units(action_space, units)
        self.action_units = ActionUnits(policy_units)
        self.reward_units = RewardUnits() if units.reward_units == "measured" else None
        self._distribution = action_distribution(action_space)
        self.policy = (
            None
            if core.gives_parameters
            else action_head(action_space, core.out_features, initial_deviation, policy_units)
        )
        self.value = nn.Linear(core.out_features, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        measured = self.reward_units is not None
        self.register_buffer("reward_scale", torch.zeros(()))
        self.register_buffer("reward_centre", torch.zeros((), dtype=torch.float64), persistent=measured)

    def seen(self, inputs: TimeStep, trial_length: int | None = None) -> Seen:
        """Return the input of the core for whole trials, from observations [T, B, ...] not yet encoded."""
        return Seen(*self.in_units(inputs)[:4], trial_length)

    def in_units(self, inputs: TimeStep) -> TimeStep:
        """Return the inputs of whole trials, [T, B, ...], encoded and in units of the network."""
        later = self.step_in_units(inputs, False)
        # At a trial's start there is no action and no reward before, but zeros.
        action, reward = _after_start(inputs.action, later.action), _after_start(inputs.reward, later.reward)
        return later._replace(action=action, reward=reward)

    def step_in_units(self, step: TimeStep, begins: bool) -> TimeStep:
        """Return steps, [..., B, ...], encoded and in units of the network.

        Args:
            step: of any number of trials.
            begins: whether the trials begin here.
        """
        observation = self.encode(step.observation)  # [..., size]
        if self.observation_units.active:
            observation = self.observation_units(observation)
        step = step._replace(observation=observation)
        if begins:
            return step
        action = self.action_units(step.action) if self.action_units.active else step.action
        reward = step.reward if self.reward_units is None else self.reward_units(step.reward)
        return step._replace(action=action, reward=reward)

    def forward(self, seen: Seen, legal: Tensor | None = None) -> tuple[ActionDistribution, Tensor]:
        """Read whole trials [T, B, ...]; return π and the scaled value, [T, B]."""
        return self.judged(self.core(seen), legal)

    @property
    def discrete_head(self) -> nn.Linear | None:
        """The layer that gives the logits of a discrete policy; None for other policies."""
        if self._distribution is not Categorical or not isinstance(self.policy, CategoricalHead):
            return None
        return self.policy.linear

    @property
    def compiles_all(self) -> bool:
        """Whether kernels are chosen, and compute the core and the heads together."""
        layer = getattr(self.core, "only_layer", None) if type(self) is ActorCritic else None
        return layer is not None and compiled(self.value.weight) and self.discrete_head is not None

    def judged(self, output: Output, legal: Tensor | None = None) -> tuple[ActionDistribution, Tensor]:
        """Return π over legal actions and the scaled value [...] for the core's output, [..., features]."""
        value = self.value(output.features).squeeze(-1)  # [..., 1] -> [...]
        parameters = output.parameters
        if parameters is None:
            assert self.policy is not None  # it exists if the core gives no parameters
            parameters = self.policy.parameters_of(output.features)
        return self._distribution(legal_only(parameters, legal)), value


class PPOCarry(NamedTuple):
    """What the agent has learnt in the trial: the hidden state of its core.

    Attributes:
        state: the core's state.
        generator: random stream of the agent's actions.
        trial_length: maximum number of steps in the trial; None if unknown.
        position: of the next step; ``act`` resets its ``episode_step`` if an episode begins there.
        packed: the weights as kernels read them, from the first step on, so they must not change within a
            trial; None before it, and where torch acts.
    """

    state: Any
    generator: torch.Generator
    trial_length: int | None
    position: Position
    packed: Any = None


class PPOAgent:
    """Acts by one step of the core. ``adapt`` changes nothing: the core's state adapts at each step."""

    phase = Phase(episodes=None)

    def __init__(self, network: ActorCritic) -> None:
        self.network = network

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> PPOCarry:
        """Return the core's initial state and the position of a trial's first step."""
        state = self.network.core.begin(num_tasks, num_steps)
        device = self.network.value.weight.device
        nothing = torch.zeros(num_tasks, self.network.observation_size, device=device)
        no_steps = torch.zeros(num_tasks, dtype=torch.int64, device=device)
        return PPOCarry(state, generator, num_steps, Position(nothing, no_steps, 0))

    def act(self, carry: PPOCarry, step: TimeStep) -> tuple[Choice, PPOCarry]:
        """Let the core read the step and sample from its policy."""
        with threads_to_kernels(_compiles(self.network)):
            if self.network.compiles_all and not torch.is_grad_enabled():
                return self._act_compiled(carry, step)
            policy, value, following = self._read(carry, step)
            return _chosen(policy, value, carry.generator), following

    def _act_compiled(self, carry: PPOCarry, step: TimeStep) -> tuple[Choice, PPOCarry]:
        from rl2meta.agents.ppo_lstm import act, packed_weights

        seen, legal, position = self._seen(carry, step)
        core: Any = self.network.core
        packed = carry.packed or packed_weights(self.network)
        done = act(core.input(seen), packed, legal, carry.state, carry.generator)
        notes = {"log_prob": done.log_prob, "value": done.value}
        following = carry._replace(state=done.state, position=position, packed=packed)
        return Choice(done.action, done.mode, notes), following

    def act_and_tell(self, carry: PPOCarry, step: TimeStep) -> tuple[Choice, PPOCarry, Told]:
        """Do what ``act`` does; tell the policy, and the value as the network learns it: per step left."""
        policy, value, following = self._read(carry, step)
        value_told = Number(value * self.network.reward_scale + self.network.reward_centre)
        told = {**policy_told(policy), "value per step left": value_told}
        return _chosen(policy, value, carry.generator), following, told

    def _read(self, carry: PPOCarry, step: TimeStep) -> tuple[ActionDistribution, Tensor, PPOCarry]:
        """Return the policy, the scaled value [B] and the next carry."""
        seen, legal, following = self._seen(carry, step)
        output, state = self.network.core.step(seen, carry.state)
        policy, value = self.network.judged(output, legal)
        return policy, value, carry._replace(state=state, position=following)

    def _seen(self, carry: PPOCarry, step: TimeStep) -> tuple[Seen, Tensor | None, Position]:
        """Return what the core reads, which actions are legal, and the position of the next step."""
        step = self.network.step_in_units(step, carry.position.trial_step == 0)
        position = carry.position._replace(
            episode_step=carry.position.episode_step.masked_fill(step.first, 0)
        )
        following = Position(step.observation, position.episode_step + 1, position.trial_step + 1)
        return Seen(*step[:4], carry.trial_length, position), step.legal, following

    def adapt(self, carry: PPOCarry, trajectory: Trajectory) -> PPOCarry:
        """Return the carry as it is."""
        return carry


def _compiles(network: ActorCritic) -> bool:
    """Return whether kernels, if they are chosen, compute all that takes long."""
    return bool(getattr(network.core, "compiles", False))


def _chosen(policy: ActionDistribution, value: Tensor, generator: torch.Generator) -> Choice:
    action = policy.sample(generator)
    return Choice(action, policy.mode(), {"log_prob": policy.log_prob(action), "value": value})


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
        part: Batch = over_fields(lambda field: field.index_select(1, index), self)
        return part


class Estimate(NamedTuple):
    """What the rewards of a shard say, [T, B] each: advantages, and returns per remaining step."""

    advantage: Tensor
    per_step: Tensor


class PPO(WholeIsOneShard):
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
        auxiliary: predicts the advantages of all actions from the core's features; None: no auxiliary loss.
    """

    def __init__(
        self,
        network: ActorCritic,
        config: PPOConfig,
        critic: PrivilegedCritic | None = None,
        auxiliary: nn.Linear | None = None,
    ) -> None:
        self.network, self.config, self.critic, self.auxiliary = network, config, critic, auxiliary
        self.agent = PPOAgent(network)
        more = [] if auxiliary is None else [*auxiliary.parameters()]
        self._weights = [*network.parameters(), *more]
        self.optimizer = Adam(self._weights, lr=config.learning_rate, fused=True)

    def update_shards(
        self,
        trials: Sequence[Trial],
        progress: float,
        generators: Sequence[torch.Generator],
        shards: Shards,
    ) -> dict[str, float]:
        """Learn in ``epochs`` passes over minibatches of whole trials, some of every shard."""
        with threads_to_kernels(_compiles(self.network)):
            return self._update(trials, progress, generators, shards)

    def _update(
        self,
        trials: Sequence[Trial],
        progress: float,
        generators: Sequence[torch.Generator],
        shards: Shards,
    ) -> dict[str, float]:
        trajectories = [trial.phases[0] for trial in trials]  # the whole trial is one phase
        cfg = self.config
        if cfg.surrogate != "sampled" and sees_all(cfg, trajectories[0]):
            batches, told = self.all_action_batches(trajectories, progress, generators, shards)
        else:
            batches = self.batches(trajectories, progress, shards)
            told = {"explained_variance": _explained(batches, trajectories, shards)}
        rate = linear(cfg.learning_rate, cfg.final_learning_rate, progress)
        warmed = min(1.0, progress / cfg.warm_up + 0.01) if cfg.warm_up else 1.0
        set_rate(self.optimizer, rate * warmed)
        entropy_weight = linear(cfg.entropy_coefficient, cfg.final_entropy_coefficient, progress)
        length = trajectories[0].most_steps
        losses = [self._loss_of_trials(batch, entropy_weight, length) for batch in batches]
        orders = [self.minibatches(*pair) for pair in zip(batches, generators, strict=True)]
        steps = [
            self.step([partial(loss, index) for loss, index in zip(losses, indices, strict=True)], shards)
            for indices in zip(*orders, strict=True)
        ]
        self._measure_inputs(trajectories, shards)
        means = torch.stack([torch.stack(list(step.values())) for step in steps]).mean(dim=0)
        values = torch.cat([means, torch.stack(list(told.values()))]).tolist()  # the only read-back
        rate = float(self.optimizer.param_groups[0]["lr"])
        return dict(zip([*steps[0], *told], values, strict=True)) | {"learning_rate": rate}

    def batches(
        self, trajectories: Sequence[Trajectory], progress: float = 0.0, shards: Shards = ALONE
    ) -> list[Batch]:
        """Return advantages and value targets for the phases of trials of a ``PPOAgent``, one for each shard.

        The first batch with a reward other than 0 also sets ``reward_scale`` and, unless rewards are raw,
        ``reward_centre``.

        Raises:
            ValueError: if the notes of the agent lack ``log_prob`` or ``value``.
        """
        net, signal = self.network, self.config.reward_signal
        signals = [reward_signal(trajectory, signal) for trajectory in trajectories]
        masks = [trajectory.mask for trajectory in trajectories]
        if net.reward_units is not None:
            set_once(net.reward_centre, net.reward_scale, signals, masks, shards)
        estimates = [self._estimated(*pair, progress) for pair in zip(trajectories, signals, strict=True)]
        if net.reward_units is None:
            self._measure_scale([each.per_step for each in estimates], masks, shards)
        counted = [mask.float() for mask in masks]
        advantages = shards.standardised([each.advantage for each in estimates], counted)
        return [
            Batch(
                inputs=net.in_units(trajectory.inputs),  # [T, B, ...]
                action=trajectory.action,
                log_prob=trajectory.notes["log_prob"],
                advantage=advantage.float(),
                value_target=(
                    (estimate.per_step - net.reward_centre) / net.reward_scale.clamp(min=1e-8)
                ).float(),
                mask=mask,
            )
            for trajectory, estimate, advantage, mask in zip(
                trajectories, estimates, advantages, counted, strict=True
            )
        ]

    def _estimated(self, trajectory: Trajectory, signal: Tensor, progress: float) -> Estimate:
        """Return the advantages of one shard, before they are standardised."""
        if not {"log_prob", "value"} <= trajectory.notes.keys():
            raise ValueError(
                "expected a trial whose agent noted log_prob and value, as PPOAgent does, got notes of "
                f"{sorted(trajectory.notes)}"
            )
        net, measured = self.network, self.network.reward_units is not None
        mask = trajectory.mask.float()  # [T, B]
        dtype = torch.float64 if measured else torch.float32  # a far zero must not swallow small differences
        reward = signal.to(dtype) * mask
        # γ also where an episode ends; 0 at the last step of the trial, before the padding.
        gamma = linear(self.config.discount, self.config.final_discount, progress)
        discount = gamma * torch.cat([mask[1:], torch.zeros_like(mask[:1])])  # [T, B]
        remaining = discounted_lengths(trajectory.steps_left(), gamma)  # [T, B]
        value = trajectory.notes["value"].to(dtype) * mask * remaining * net.reward_scale
        value = value + mask * remaining * net.reward_centre.to(dtype)
        advantage = gae(reward, discount, value, self.config.gae_trace)
        return Estimate(advantage, (advantage + value) / remaining)

    def all_action_batches(
        self,
        trajectories: Sequence[Trajectory],
        progress: float,
        generators: Sequence[torch.Generator],
        shards: Shards = ALONE,
    ) -> tuple[list[Batch], dict[str, Tensor]]:
        """Return batches with advantages of all actions, and ``explained_variance``; teach the critic."""
        cfg = self.config
        means = [trajectory.truth["regrets"].mean(dim=-1) for trajectory in trajectories]
        self._measure_scale(means, [trajectory.mask for trajectory in trajectories], shards)
        scale = self.network.reward_scale.clamp(min=1e-8)
        gamma = linear(cfg.discount, cfg.final_discount, progress)
        given = [self._given(trajectory, scale) for trajectory in trajectories]
        found, explained = judged(given, scale, gamma, cfg.gae_trace, self.critic, generators, shards)
        batches = [
            Batch(
                inputs=own.inputs,
                action=trajectory.action,
                log_prob=trajectory.notes["log_prob"],
                advantage=each.future,
                value_target=each.value_target,
                mask=trajectory.mask.float(),
                log_probs=own.log_probs,
                immediate=each.immediate,
            )
            for trajectory, own, each in zip(trajectories, given, found, strict=True)
        ]
        return batches, {"explained_variance": explained}

    @torch.no_grad()
    def _given(self, trajectory: Trajectory, scale: Tensor) -> Given:
        """Return what the present network says of a shard, for the advantages of all actions."""
        net = self.network
        inputs = net.in_units(trajectory.inputs)
        seen = Seen(*inputs[:4], trajectory.most_steps)
        output = net.core(seen)
        policy, value = net.judged(output, inputs.legal)
        assert isinstance(policy, Categorical)  # only families of discrete actions reveal their regrets
        regrets = trajectory.truth["regrets"] / scale
        known = Known(output.features, regrets, policy.log_probs.exp(), seen.elapsed)
        return Given(trajectory, inputs, known, policy.log_probs, value)

    def _measure_scale(self, rewards: Sequence[Tensor], masks: Sequence[Tensor], shards: Shards) -> None:
        """Set the unit of the value once: the mean absolute return per step of the first paying batch."""
        scale = self.network.reward_scale
        size = shards.masked_mean([reward.abs() for reward in rewards], [mask.float() for mask in masks])
        scale.copy_(torch.where(scale == 0, size, scale))

    def _measure_inputs(self, trajectories: Sequence[Trajectory], shards: Shards) -> None:
        """Measure the units of the network's input after the steps, which must see what the agent saw."""
        net, masks = self.network, [trajectory.mask for trajectory in trajectories]
        if net.reward_units is not None:
            net.reward_units.measure([trajectory.reward for trajectory in trajectories], masks, shards)
        if net.observation_units.measured:
            seen = [net.encode(trajectory.inputs.observation) for trajectory in trajectories]
            net.observation_units.measure(seen, masks, shards)

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the number of each trial once in every pass, in minibatches of random order."""
        num_trials = batch.mask.shape[1]
        for _ in range(self.config.epochs):
            order = torch.randperm(num_trials, generator=generator).to(batch.mask.device)
            yield from order.chunk(self.config.minibatches)  # [B] -> [B / minibatches]

    def _loss_of_trials(
        self, batch: Batch, entropy_weight: float, trial_length: int | None
    ) -> Callable[[Tensor], Lost]:
        """Return the loss of trials of a batch as a function of their numbers."""
        learns_all = self.auxiliary is None and all(weight.requires_grad for weight in self._weights)
        if learns_all and self.network.compiles_all and type(self).lost is PPO.lost:
            from rl2meta.agents.ppo_lstm import LossOfTrials

            weights = self._in_the_loss(entropy_weight)
            return LossOfTrials(self.network, batch, weights, trial_length)
        return lambda index: self.lost(batch.trials(index), entropy_weight, trial_length)

    def step(self, losses: Sequence[Callable[[], Lost]], shards: Shards = ALONE) -> dict[str, Tensor]:
        """Take one gradient step on a minibatch, with the loss of each shard's part; return its metrics."""
        told = set_gradients(self._weights, losses, shards)
        norm = clip_gradients(self._weights, self.config.max_gradient_norm)
        self.optimizer.step()
        return told | {"gradient_norm": norm}

    def lost(self, batch: Batch, entropy_weight: float, trial_length: int | None = None) -> Lost:
        """Return the loss of trials, a mean over their steps, and its metrics."""
        output = self.network.core(Seen(*batch.inputs[:4], trial_length))
        judge = self.fused if self._fuses(output.features) else self.plain
        loss, told = judge(output, batch, entropy_weight)
        if self.auxiliary is not None and batch.immediate is not None:
            told["auxiliary_loss"] = self._auxiliary_loss(output.features, batch.immediate, batch.mask)
            loss = loss + self.config.auxiliary_coefficient * told["auxiliary_loss"]
        return Lost(loss, batch.mask.sum(), told)

    def _fuses(self, x: Tensor) -> bool:
        """Return whether there are compiled kernels for the heads and the loss, with numbers as in ``x``."""
        return compiled(x) and self.network.discrete_head is not None

    def fused(self, output: Output, batch: Batch, entropy_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what ``plain`` returns, for one linear layer on the features that gives logits."""
        from rl2meta.agents.ppo_loss import Taken, fused_loss

        head, known = self.network.discrete_head, Taken(*batch[1:], batch.inputs.legal)
        assert head is not None
        weights = self._in_the_loss(entropy_weight)
        return fused_loss(output.features, head, self.network.value, known, weights)

    def _in_the_loss(self, entropy_weight: float) -> Any:
        from rl2meta.agents.ppo_loss import Weights

        return Weights(self.config.clip_range, self.config.value_coefficient, entropy_weight)

    def plain(self, output: Output, batch: Batch, entropy_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its metrics for the output of any core and any distribution."""
        policy, value = self.network.judged(output, batch.inputs.legal)  # [T, B, ...] -> [T, B]
        log_ratio = policy.log_prob(batch.action) - batch.log_prob
        policy_loss = -masked_mean(
            clipped_surrogate(log_ratio, batch.advantage, self.config.clip_range), batch.mask
        )
        if batch.immediate is not None and batch.log_probs is not None:
            assert isinstance(policy, Categorical)
            gains = all_action_surrogate(policy, batch.log_probs, batch.immediate, self.config.clip_range)
            policy_loss = policy_loss - masked_mean(gains, batch.mask)
        value_loss = masked_mean((value - batch.value_target).square(), batch.mask)
        entropy = masked_mean(policy.entropy(), batch.mask)
        loss = policy_loss + self.config.value_coefficient * value_loss - entropy_weight * entropy
        metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        return loss, metrics | self._movement(log_ratio.detach(), batch.mask)

    def _movement(self, log_ratio: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return how far π is from π_old: the KL, and the part of the actions taken whose ρ is clipped.

        E[(ρ − 1) − log ρ] estimates KL(π_old ‖ π) without ever being negative.
        """
        change = log_ratio.expm1()  # ρ − 1, [T, B]
        clipped = (change.abs() > self.config.clip_range).float()
        return {"kl": masked_mean(change - log_ratio, mask), "clip_fraction": masked_mean(clipped, mask)}

    def _auxiliary_loss(self, features: Tensor, immediate: Tensor, mask: Tensor) -> Tensor:
        """Return the squared error of predicted advantages, both around their mean over actions."""
        assert self.auxiliary is not None
        error = self.auxiliary(features) - immediate  # [T, B, A]
        return masked_mean((error - error.mean(dim=-1, keepdim=True)).square().mean(dim=-1), mask)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the states of network and optimiser as named tensors."""
        state = state_of(self.network, self.optimizer)
        critic = {} if self.critic is None else self.critic.state()
        auxiliary = {} if self.auxiliary is None else named_under("auxiliary.", self.auxiliary)
        return state | {f"critic.{name}": tensor for name, tensor in critic.items()} | auxiliary

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the states of network and optimiser; names and shapes must match exactly."""
        load_state(state, self.network, self.optimizer)
        if self.critic is not None:
            self.critic.load(under("critic.", state))
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(under("auxiliary.", state))


def _explained(batches: Sequence[Batch], trajectories: Sequence[Trajectory], shards: Shards) -> Tensor:
    """Return which part of the variance of the value targets the agent's values explain."""
    targets, masks = [batch.value_target for batch in batches], [batch.mask for batch in batches]
    pairs = zip(targets, trajectories, strict=True)
    errors = [target - trajectory.notes["value"] for target, trajectory in pairs]
    return shards.explained_variance(targets, errors, masks)


def _after_start(raw: Tensor, seen: Tensor) -> Tensor:
    """Return ``seen`` [T, ...] with the first row of ``raw``."""
    return seen if seen is raw else torch.cat([raw[:1], seen[1:]])
