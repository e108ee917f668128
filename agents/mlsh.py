"""MLSH: sub-policies that all tasks share, and a master for each task that learns which of them to follow.

Within a trial a new master learns, by PPO, to choose among K sub-policies every ``duration`` steps. Between
trials the sub-policies learn, by PPO on the steps at which they acted, in the phases of the trial after the
warm-up: then the masters already choose well, so each sub-policy sees the tasks that it serves.

Source: Frans et al. 2018, *Meta Learning Shared Hierarchies* (arXiv 1710.09767), algorithm 1; the authors'
code is openai/mlsh. In both, sub-policies move after each phase of the joint period; here they move once
after a trial, from all its joint phases, because an agent's shared weights only change between trials.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor

from rl2meta.adam import Adam
from rl2meta.agents.mlsh_master import AT_TEST, MasterConfig, MasterLoop, Masters
from rl2meta.agents.mlsh_steps import Steps, counts, standardised
from rl2meta.agents.numbers import Count, Fraction, NonNegative, Positive
from rl2meta.agents.sub_policies import SubPolicies
from rl2meta.beliefs import Probabilities, Told, policy_told
from rl2meta.learner_state import load_state, seeded, state_of
from rl2meta.networks import Categorical
from rl2meta.returns import (
    RewardSignal,
    clipped_surrogate,
    discounted_lengths,
    gae,
    reward_signal,
)
from rl2meta.shards import ALONE, Lost, Shards, set_gradients
from rl2meta.training import AgentKind, WholeIsOneShard, clip_gradients, linear, set_rate
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory, Trial


class MLSHConfig(MasterConfig):
    """The settings of MLSH: those of the masters, and of the sub-policies, which learn between trials."""

    hidden_sizes: list[Count] = Field([64, 64], description="units in each hidden layer of a sub-policy")
    warm_up: Annotated[int, Field(ge=0, le=2**20)] = Field(
        3,
        description="number of phases at a trial's start in which only the masters learn; the sub-policies "
        "learn from the other phases, or from the last one if there are no others",
    )
    learning_rate: Positive = Field(8e-3, description="Adam's step size of the sub-policies at the start")
    final_learning_rate: NonNegative = Field(0.0, description="Adam's step size at the end of training")
    entropy_coefficient: NonNegative = Field(0.003, description="weight of the entropy bonus at the start")
    final_entropy_coefficient: NonNegative | None = Field(
        None, description="weight of the entropy bonus at the end of training; null: no change"
    )
    value_coefficient: NonNegative = Field(0.5, description="weight of the value loss")
    discount: Fraction = Field(0.99, description="discount γ, within an episode")
    gae_trace: Fraction = Field(0.98, description="λ of generalised advantage estimation")
    clip_range: Positive = Field(0.2, description="ε of PPO's clipped surrogate")
    epochs: Count = Field(4, description="number of passes over the steps of each batch of trials")
    minibatches: Count = Field(8, description="number of minibatches in each pass")
    max_gradient_norm: Positive = Field(0.5, description="longer gradients are scaled down to this")
    reward_unit: Positive = Field(1.0, description="the losses divide rewards by this")
    initial_deviation: Positive = Field(1.0, description="standard deviation of continuous actions at first")
    reward_signal: RewardSignal = Field(
        "auto",
        description="reward in the sub-policies' loss: sampled, expected, or regret (minus the regret); "
        "auto: the last of these that the family provides; masters always learn from what is sampled",
    )


class MLSHCarry(NamedTuple):
    """What the agent has learnt in the trial, and what it is about.

    Attributes:
        masters: of the tasks.
        sub_policy: the choice that holds, int64 [B].
        elapsed: steps since the last choice, int64 [B]; an episode's start asks for a new choice.
        log_prob: log π of the choice under its master, [B].
        value: the master's value at the choice, [B].
        generator: random stream of the trial.
    """

    masters: Masters
    sub_policy: Tensor
    elapsed: Tensor
    log_prob: Tensor
    value: Tensor
    generator: torch.Generator


class MLSHAgent:
    """Follows the sub-policy that the task's master chose; the masters learn between phases."""

    def __init__(self, network: SubPolicies, loop: MasterLoop, reward_unit: float) -> None:
        self.network, self.loop, self._unit = network, loop, reward_unit
        self.phase = Phase(episodes=1, lanes_per_task=loop.config.episodes_per_phase)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> MLSHCarry:
        """Return new masters, with weights of their own and no moments."""
        masters = self.loop.begin(num_tasks, generator)
        nothing = torch.zeros(num_tasks * self.phase.lanes_per_task, device=generator.device)
        return MLSHCarry(masters, nothing.long(), nothing.long(), nothing, nothing, generator)

    def act(self, carry: MLSHCarry, step: TimeStep) -> tuple[Choice, MLSHCarry]:
        """Let the master choose where a choice has run out, and act by the sub-policies."""
        observation = self.network.encode(step.observation)  # [B, size]
        carry = self._choose(carry, observation, step.first)
        policy, value = self.network.chosen(carry.sub_policy, observation, step.legal)
        action = policy.sample(carry.generator)
        notes = {
            "sub_policy": carry.sub_policy,
            "log_prob": policy.log_prob(action),
            "value": value,
            "master_log_prob": carry.log_prob,
            "master_value": carry.value,
        }
        return Choice(action, policy.mode(), notes), carry._replace(elapsed=carry.elapsed + 1)

    def act_and_tell(self, carry: MLSHCarry, step: TimeStep) -> tuple[Choice, MLSHCarry, Told]:
        """Do what ``act`` does; tell the sub-policy at work, its policy, and what the master prefers."""
        choice, after = self.act(carry, step)
        observation = self.network.encode(step.observation)  # [B, size]
        policy, _ = self.network.chosen(after.sub_policy, observation, step.legal)
        log_probs, _ = self._read(carry, observation)  # [B, K]
        kinds = torch.arange(self.network.num, device=log_probs.device)
        at_work = (after.sub_policy.unsqueeze(1) == kinds).float()
        masters = {
            "sub-policy at work": Probabilities(at_work, "sub-policy"),
            "the master's preference": Probabilities(log_probs.exp(), "sub-policy"),
        }
        return choice, after, {**policy_told(policy), **masters}

    def _read(self, carry: MLSHCarry, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return log π [B, K] and the value [B] of the masters."""
        lanes = self.phase.lanes_per_task
        by_task = observation.reshape(-1, lanes, *observation.shape[1:])  # [N, lanes, size]
        log_probs, value = (x.flatten(0, 1) for x in self.loop.read(carry.masters.weights, by_task))
        return log_probs, value

    def _choose(self, carry: MLSHCarry, observation: Tensor, first: Tensor) -> MLSHCarry:
        log_probs, value = self._read(carry, observation)
        masters = Categorical(log_probs)
        drawn = masters.sample(carry.generator)  # [B]
        asks = first | (carry.elapsed >= self.loop.config.duration)
        return carry._replace(
            sub_policy=torch.where(asks, drawn, carry.sub_policy),
            elapsed=carry.elapsed.masked_fill(asks, 0),
            log_prob=torch.where(asks, masters.log_prob(drawn), carry.log_prob),
            value=torch.where(asks, value, carry.value),
        )

    def adapt(self, carry: MLSHCarry, trajectory: Trajectory) -> MLSHCarry:
        """Let every master learn from its choices in the phase."""
        observation = self.network.encode(trajectory.inputs.observation)
        choices = self.loop.choices(trajectory, observation, self._unit)
        return carry._replace(masters=self.loop.learn(carry.masters, choices))


class MLSHLearner(WholeIsOneShard):
    """Moves the sub-policies by PPO; each learns from the steps at which it acted, over all tasks together.

        L = Σ_k E_k[−min(ρA, clip(ρ, 1−ε, 1+ε)A) + c_v (v − v_target)² − c_e H(π_k)]

    with E_k the mean over the steps of sub-policy k, whose advantages are standardised over these steps.

    Args:
        observation_space, action_space: of one environment.
        config: the settings.
        device: of the network.
        seed: of the initial weights.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: MLSHConfig,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        sizes = config.num_sub_policies, config.hidden_sizes, config.initial_deviation
        network = seeded(lambda: SubPolicies(observation_space, action_space, *sizes), seed)
        self.network, self.config = network.to(device), config
        loop = MasterLoop(self.network.in_features, config)
        self.agent = MLSHAgent(self.network, loop, config.reward_unit)
        self.optimizer = Adam(self.network.parameters(), lr=config.learning_rate)

    def update_shards(
        self,
        trials: Sequence[Trial],
        progress: float,
        generators: Sequence[torch.Generator],
        shards: Shards,
    ) -> dict[str, float]:
        """Learn from the joint phases of a batch; a minibatch has steps of every shard."""
        cfg = self.config
        entropy_weight = linear(cfg.entropy_coefficient, cfg.final_entropy_coefficient, progress)
        set_rate(self.optimizer, linear(cfg.learning_rate, cfg.final_learning_rate, progress))
        batches = self.steps(trials, shards)
        pairs = zip(batches, generators, strict=True)
        orders = [batch.minibatches(cfg.epochs, cfg.minibatches, source, shards) for batch, source in pairs]
        metrics = [self._step(parts, entropy_weight, shards) for parts in zip(*orders, strict=True)]
        told = {name: torch.stack([each[name] for each in metrics]).mean() for name in metrics[0]}
        *of_each, of_all = counts(batches, self.network.num, shards)
        told |= {f"share_{k}": count / of_all for k, count in enumerate(of_each)}
        for name, number in (("first_phase", 0), ("last_phase", -1)):
            told[name] = shards.mean([_earned(trial.phases[number]) for trial in trials])
        return dict(zip(told, torch.stack(list(told.values())).tolist(), strict=True))

    def steps(self, trials: Sequence[Trial], shards: Shards = ALONE) -> list[Steps]:
        """Return the steps of the joint phases, with advantages and value targets, of each own shard.

        Returns end with an episode, and a value is predicted per remaining step.
        """
        return standardised([self._of_trial(trial) for trial in trials], self.network.num, shards)

    def _of_trial(self, trial: Trial) -> Steps:
        joint = trial.phases[min(self.config.warm_up, len(trial.phases) - 1) :]
        return Steps(*(torch.cat(fields) for fields in zip(*map(self._of_phase, joint), strict=True)))

    def _of_phase(self, phase: Trajectory) -> Steps:
        cfg, notes, mask = self.config, phase.notes, phase.mask.float()
        reward = reward_signal(phase, cfg.reward_signal) * mask / cfg.reward_unit
        discount = cfg.discount * torch.cat([mask[1:], torch.zeros_like(mask[:1])])  # a phase is an episode
        remaining = discounted_lengths(phase.steps_left(), cfg.discount)
        value = notes["value"] * mask * remaining
        advantage = gae(reward, discount, value, cfg.gae_trace)
        legal = phase.inputs.legal
        fields = (
            self.network.encode(phase.inputs.observation),
            *(phase.action, notes["log_prob"], notes["sub_policy"], advantage),
            *((advantage + value) / remaining, mask),
            phase.mask.new_zeros(*mask.shape, 0) if legal is None else legal,
        )
        return Steps(*(field.flatten(0, 1) for field in fields))  # [T, B, ...] -> [rows, ...]

    def _step(
        self, parts: Sequence[Steps], entropy_weight: float, shards: Shards = ALONE
    ) -> dict[str, Tensor]:
        """Take one gradient step on a minibatch, of which each own shard has a part; return its metrics."""
        weights, total = list(self.network.parameters()), counts(parts, self.network.num, shards)
        size = total.clamp(min=1) / shards.total
        told = set_gradients(
            weights, [partial(self._lost, part, size, entropy_weight) for part in parts], shards
        )
        norm = clip_gradients(weights, self.config.max_gradient_norm)
        self.optimizer.step()
        return {**told, "gradient_norm": norm}

    def _lost(self, batch: Steps, size: Tensor, entropy_weight: float) -> Lost:
        """Return the loss of a part of a minibatch.

        Args:
            batch: the part.
            size: the mean number of steps in a part: of each sub-policy and of all, [K + 1].
            entropy_weight: c_e.
        """
        cfg = self.config
        policy, value = self.network.chosen(batch.sub_policy, batch.observation, batch.legal)
        log_ratio = policy.log_prob(batch.action) - batch.log_prob
        gain = clipped_surrogate(log_ratio, batch.advantage, cfg.clip_range)
        error, entropy = (value - batch.value_target).square(), policy.entropy()
        each = cfg.value_coefficient * error - gain - entropy_weight * entropy
        loss = ((batch.of_each(self.network.num) * each).sum(dim=1) / size[:-1]).sum()
        change = log_ratio.detach().expm1()
        told = {"value_loss": error, "entropy": entropy, "kl": change - log_ratio}
        means = {name: (x.detach() * batch.mask).sum() / size[-1] for name, x in told.items()}
        return Lost(loss, torch.ones_like(loss), {"loss": loss, **means})

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sub-policies and their optimiser's moments as named tensors."""
        return state_of(self.network, self.optimizer)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load them; names and shapes must match exactly."""
        load_state(state, self.network, self.optimizer)


MLSH = AgentKind(
    "sub-policies that all tasks share, and a new master for each task that learns to choose among them",
    MLSHConfig,
    MLSHLearner,
    at_test=AT_TEST,
    network=("duration",),
)


def _earned(phase: Trajectory) -> Tensor:
    """Return the mean return of an episode."""
    return (phase.reward * phase.mask).sum(dim=0).mean()
