"""The masters of MLSH: one small network for each task, which chooses among sub-policies and learns by PPO.

All tasks learn at once: weights and moments are stacked, and one gradient of the sum of the tasks' losses is
the gradient of each, because no task's loss depends on another's weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from rl2meta.agents.numbers import Count, Fraction, NonNegative, Positive
from rl2meta.agents.rows import by_row
from rl2meta.learner_state import seeded
from rl2meta.networks import Tanh, mlp, stacked
from rl2meta.returns import clipped_surrogate, discounted_lengths, gae, masked_mean
from rl2meta.trial import Trajectory

Weights = Mapping[str, Tensor]
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_ROUNDING = 1e-5  # of an advantage: a smaller difference between lanes is not told from rounding


class MasterConfig(BaseModel):
    """The settings of the masters, which learn within a trial."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    num_sub_policies: Count = Field(2, description="number K of sub-policies, which all tasks share")
    duration: Count = Field(10, description="steps for which a choice of the master holds, at most")
    episodes_per_phase: Count = Field(
        4, description="number of parallel episodes in each phase of a trial; the master learns after a phase"
    )
    master_hidden_sizes: list[Count] = Field([32], description="units in each hidden layer of a master")
    master_learning_rate: Positive = Field(1e-2, description="Adam's step size of the masters")
    master_epochs: Count = Field(10, description="gradient steps of a master after each phase, on all of it")
    master_clip_range: Positive = Field(0.5, description="ε of the masters' clipped surrogate")
    master_value_coefficient: NonNegative = Field(0.5, description="weight of the masters' value loss")
    master_entropy_coefficient: NonNegative = Field(0.0, description="weight of the masters' entropy bonus")
    master_discount: Fraction = Field(0.99, description="discount γ of the masters, from choice to choice")
    master_trace: Fraction = Field(0.98, description="λ of the masters' generalised advantage estimation")
    random_choices: Fraction = Field(0.0, description="probability with which a choice is any sub-policy")


AT_TEST = (
    *("episodes_per_phase", "master_learning_rate", "master_epochs", "master_clip_range", "random_choices"),
    *("master_value_coefficient", "master_entropy_coefficient", "master_discount", "master_trace"),
)
"""The keys that may change after training: how a master learns."""


class Masters(NamedTuple):
    """The masters of N tasks: their weights, and Adam's moments of them.

    Attributes:
        weights: by name, [N, ...] each.
        first, second: means of the gradients and of their squares, in the shapes of the weights.
        steps: number of gradient steps taken.
    """

    weights: Weights
    first: Weights
    second: Weights
    steps: int

    def stepped(self, gradients: Weights, rate: float) -> "Masters":
        """Return the masters after one step of Adam, without bounds on the gradients.

            m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
            w ← w − α (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

        Source: Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1.
        """
        t, (beta1, beta2) = self.steps + 1, _BETAS
        first = {name: m.lerp(gradients[name], 1 - beta1) for name, m in self.first.items()}
        second = {name: v.lerp(gradients[name].square(), 1 - beta2) for name, v in self.second.items()}
        size, root = rate / (1 - beta1**t), (1 - beta2**t) ** 0.5
        weights = {
            name: weight - size * first[name] / (second[name].sqrt() / root + _EPSILON)
            for name, weight in self.weights.items()
        }
        return Masters(weights, first, second, t)


class Choices(NamedTuple):
    """The choices of a phase, without a time axis: [N, rows, ...], a row for each choice of each lane.

    Attributes:
        observation: encoded, where the choice was made, [N, rows, size].
        sub_policy: the choice, int64 [N, rows].
        log_prob: its log π_old, [N, rows].
        advantage: of the choice, [N, rows].
        value_target: of the value per remaining choice, [N, rows].
        weight: 0 after the end of an episode, else 1, [N, rows].
    """

    observation: Tensor
    sub_policy: Tensor
    log_prob: Tensor
    advantage: Tensor
    value_target: Tensor
    weight: Tensor


class MasterLoop:
    """How a master begins, chooses and learns; for all tasks at once.

    Args:
        in_features: length of an encoded observation.
        config: the settings.
    """

    def __init__(self, in_features: int, config: MasterConfig) -> None:
        self.config = config
        self.network = seeded(lambda: _network(in_features, config), 0)  # only its shapes are used

    def begin(self, num_tasks: int, generator: torch.Generator) -> Masters:
        """Return new masters with weights of their own, which choose every sub-policy equally often.

        Weights are uniform in ±√(6 / (fan in + fan out)), those of the last layer and all biases 0.
        """
        *hidden, _last = (name for name, each in self.network.named_parameters() if each.dim() == 2)
        weights = {}
        for name, like in self.network.named_parameters():
            shape, bound = (num_tasks, *like.shape), (6 / sum(like.shape)) ** 0.5
            weights[name] = torch.zeros(shape, device=generator.device)
            if name in hidden:
                weights[name].uniform_(-bound, bound, generator=generator)
        nothing = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        return Masters(weights, nothing, nothing, 0)

    def read(self, weights: Weights, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return log π(k), [N, rows, K], and the value per remaining choice, [N, rows].

        π is the softmax of the logits, mixed with the uniform distribution by ``random_choices``.
        """
        outputs = stacked(self.network, weights, observation)  # [N, rows, K + 1]
        log_probs, share = torch.log_softmax(outputs[..., :-1], dim=-1), self.config.random_choices
        if share:
            log_probs = (log_probs.exp() * (1 - share) + share / log_probs.shape[-1]).log()
        return log_probs, outputs[..., -1]

    def learn(self, masters: Masters, choices: Choices) -> Masters:
        """Take ``master_epochs`` steps of PPO on all choices of a phase, for every task."""
        for _ in range(self.config.master_epochs):
            gradients = self._gradients(masters.weights, choices)
            masters = masters.stepped(gradients, self.config.master_learning_rate)
        return masters

    def _gradients(self, weights: Weights, choices: Choices) -> Weights:
        """Return the gradient of each task's loss by its own weights."""
        with torch.enable_grad():
            leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
            loss = self.losses(leaves, choices).sum()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    def losses(self, weights: Weights, choices: Choices) -> Tensor:
        """Return the loss of each task, [N].

            L = −E[min(ρA, clip(ρ, 1−ε, 1+ε)A)] + c_v E[(v − v_target)²] − c_e E[H(π)]

        with expectations over the task's own choices, and ρ = π(k)/π_old(k).
        """
        cfg = self.config
        log_probs, value = self.read(weights, choices.observation)
        log_ratio = log_probs.gather(2, choices.sub_policy.unsqueeze(2)).squeeze(2) - choices.log_prob
        gain = clipped_surrogate(log_ratio, choices.advantage, cfg.master_clip_range)
        error = (value - choices.value_target).square()
        entropy = -(log_probs.exp() * log_probs).sum(dim=2)
        each = cfg.master_value_coefficient * error - gain - cfg.master_entropy_coefficient * entropy
        return masked_mean(each, choices.weight, dim=(1,)).squeeze(1)

    def choices(self, trajectory: Trajectory, observation: Tensor, unit: float) -> Choices:
        """Return the choices of a phase of one episode in each lane.

        The reward of a choice is the sum of those of its steps, divided by ``duration``. The lanes of a task
        make their choices at the same times: advantages are centred over the lanes, so even a new master,
        whose value is not yet learnt, sees which choices were better. Then they are divided by their root
        mean square in the task. Where the horizon is not known, the longest episode stands for it.

        Args:
            trajectory: the phase, whose notes are those of ``MLSHAgent``.
            observation: its observations, encoded, [T, N × lanes, size].
            unit: of the rewards.
        """
        cfg, notes, mask = self.config, trajectory.notes, trajectory.mask.float()
        every, lanes = cfg.duration, cfg.episodes_per_phase
        reward = _summed(trajectory.reward * mask, every) / (every * unit)  # [choices, N × lanes]
        alive = mask[::every]
        discount = cfg.master_discount * torch.cat([alive[1:], torch.zeros_like(alive[:1])])
        bounded = replace(trajectory, horizon=trajectory.horizon or len(mask))
        left = (bounded.steps_left()[::every] + every - 1) // every
        remaining = discounted_lengths(left, cfg.master_discount)
        value = notes["master_value"][::every] * alive * remaining
        advantage = gae(reward, discount, value, cfg.master_trace) * alive
        fields = observation[::every], notes["sub_policy"][::every], notes["master_log_prob"][::every]
        rows = Choices(*fields, advantage, (advantage + value) / remaining, alive)
        laid = Choices(*(by_row(field, lanes) for field in rows))
        return laid._replace(advantage=_compared(laid.advantage, laid.weight, lanes))


def _network(in_features: int, config: MasterConfig) -> nn.Sequential:
    """Return the layers of a master: the logits of its choices come first, the value last."""
    sizes = config.master_hidden_sizes
    last = nn.Linear(sizes[-1] if sizes else in_features, config.num_sub_policies + 1)
    return nn.Sequential(mlp(in_features, sizes, Tanh), last)


def _summed(reward: Tensor, every: int) -> Tensor:
    """Sum over blocks of ``every`` steps, [T, B] -> [⌈T / every⌉, B]."""
    missing = -len(reward) % every
    blocks = functional.pad(reward, (0, 0, 0, missing)).reshape(-1, every, reward.shape[1])
    return blocks.sum(dim=1)


def _compared(advantage: Tensor, weight: Tensor, lanes: int) -> Tensor:
    """Centre advantages [N, lanes × choices] over the lanes, if there are several; divide by their size."""
    rounding = _ROUNDING * _size(advantage, weight)  # where all lanes earn the same, nothing else is left
    if lanes > 1:
        laned, alive = (x.reshape(len(x), lanes, -1) for x in (advantage, weight))  # [N, lanes, choices]
        mean = (laned * alive).sum(dim=1, keepdim=True) / alive.sum(dim=1, keepdim=True).clamp(min=1)
        advantage = ((laned - mean) * alive).flatten(1)
    return advantage / (torch.maximum(_size(advantage, weight), rounding) + 1e-8)


def _size(advantage: Tensor, weight: Tensor) -> Tensor:
    """Return the root mean square of each task, [N, 1]."""
    return masked_mean(advantage.square(), weight, dim=(1,)).sqrt()
