"""MAML: initial weights from which a few gradient steps on a new task go far.

    θ'ᵢ = θ − α ∇Lᵢ(θ)

What a task's loss is, and how θ learns, are other files' matter: ``maml_trpo`` adapts by policy gradients and
learns by a trust region, ``maml_regression`` adapts by squared errors and learns by Adam.

Source: Finn et al. 2017, *Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks*
(arXiv 1703.03400), algorithms 1 and 3. Step sizes that are learnt: Li et al. 2017 (arXiv 1707.09835).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.func import grad, vmap

from rl2meta.agents.numbers import Count, Positive
from rl2meta.learner_state import under
from rl2meta.parts import in_parts
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory

Weights = Mapping[str, Tensor]


AT_TEST = ("episodes_per_phase", "inner_learning_rates", "inner_steps", "support_phases")
"""The keys of an ``InnerConfig`` that may change after training: how the agent adapts."""


class InnerConfig(BaseModel):
    """What every agent of MAML's kind has for settings: the network, and how it adapts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_sizes: list[Count] = Field([64, 64], description="units in each hidden layer")
    episodes_per_phase: Count = Field(
        20, description="episodes side by side between two inner steps; a trial is several phases of so many"
    )
    inner_learning_rates: Annotated[list[Positive], Field(min_length=1)] = Field(
        [0.1], description="α of the first, the second, … inner step; the last serves all that follow"
    )
    learn_inner_rates: bool = Field(
        False, description="learn a factor of α for every weight, as Meta-SGD does"
    )
    inner_steps: Annotated[int, Field(ge=0, le=2**20)] | None = Field(
        None, description="maximum number of gradient steps; null: one after every phase"
    )
    support_phases: Count | None = Field(
        None, description="later steps use the last of so many phases again; null for every phase its own"
    )
    first_order: bool = Field(False, description="leave out how the inner gradient moves with θ (FOMAML)")


class Rows(NamedTuple):
    """One phase as supervised examples, without time: tensors [num_tasks, rows, ...].

    Attributes:
        observation: encoded, [num_tasks, rows, size].
        label: the action that was taken, or should have been.
        advantage: how much better than expected it was; 1 where that means nothing.
        weight: sums to 1 over the rows of a task; 0 on padding.
    """

    observation: Tensor
    label: Tensor
    advantage: Tensor
    weight: Tensor

    def of(self, tasks: slice) -> "Rows":
        """Return the same rows of some tasks."""
        return Rows(*(field[tasks] for field in self))

    def take(self, index: Tensor) -> "Rows":
        """Return the rows at ``index``, the same for every task, weighted to sum to 1 again."""
        part = Rows(*(field[:, index] for field in self))
        return part._replace(weight=normalised(part.weight))


class Objective(Protocol):
    """What a task is to the inner loop."""

    def encode(self, observation: Tensor) -> Tensor:
        """Return the network's input [..., size] for observations as the environment gives them."""
        ...

    def choose(self, outputs: Tensor, generator: torch.Generator) -> Choice:
        """Return what to do in each row, for the network's outputs [B, ...]."""
        ...

    def rows(self, trajectory: Trajectory, lanes: int) -> Rows:
        """Return a phase as the inner loop learns from it: of nothing but what the agent saw."""
        ...

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Return the loss of one task, a scalar, for outputs [rows, ...] and rows without the task axis."""
        ...


class TaskNetwork(Protocol):
    """A module that runs by its own weights, and by weights of each task's own."""

    def stacked(self, weights: Weights, observation: Tensor) -> Tensor:
        """Return [num_tasks, rows, P] for encoded observations [num_tasks, rows, size]."""
        ...


class MetaWeights(nn.Module):
    """All that is learnt between trials: θ and, for Meta-SGD, a factor of α for each weight, 1 at first.

    A step's rate scales them all, so that steps that training never took have them too.
    """

    def __init__(self, network: nn.Module, config: InnerConfig) -> None:
        super().__init__()
        self.network = network
        weights = network.named_parameters() if config.learn_inner_rates else ()
        self.factors = nn.ParameterDict(
            {name.replace(".", "/"): torch.ones_like(value) for name, value in weights}
        )


class Adapted(NamedTuple):
    """What the inner loop knows of each task.

    Attributes:
        weights: of the network, stacked: [num_tasks, ...] each.
        factors: of α for each weight, shared by all tasks; empty if they are not learnt.
        steps: gradient steps taken.
        kept: the phase that later steps use again, once there is one.
    """

    weights: Weights
    factors: Weights
    steps: int
    kept: Rows | None

    def of(self, tasks: slice) -> "Adapted":
        """Return the same of some tasks."""
        weights = {name: value[tasks] for name, value in self.weights.items()}
        kept = None if self.kept is None else self.kept.of(tasks)
        return self._replace(weights=weights, kept=kept)


@dataclass(frozen=True)
class InnerLoop:
    """The inner loop, written once: with gradients blocked it adapts, with gradients it is learnt through.

    All tasks advance at once, over their stacked weights.

    Attributes:
        network: what runs by the weights that it is given; its own are never used.
        objective: what a task is.
        config: how to adapt.
    """

    network: TaskNetwork
    objective: Objective
    config: InnerConfig

    def begin(self, meta: Weights, num_tasks: int) -> Adapted:
        """Return ``num_tasks`` copies of θ, for the named parameters of a ``MetaWeights``."""
        theta, learnt = under("network.", meta), under("factors.", meta)
        factors = {name.replace("/", "."): factor for name, factor in learnt.items()}
        weights = {name: value.expand(num_tasks, *value.shape) for name, value in theta.items()}
        return Adapted(weights, factors, 0, None)

    def outputs(self, adapted: Adapted, observation: Tensor) -> Tensor:
        """Return [num_tasks, rows, P] for encoded observations [num_tasks, rows, size]."""
        return self.network.stacked(adapted.weights, observation)

    def losses(self, adapted: Adapted, rows: Rows) -> Tensor:
        """Return the loss of each task, [num_tasks]."""
        return self._losses(adapted.weights, rows)

    def advance(self, adapted: Adapted, rows: Rows) -> Adapted:
        """Take one gradient step on every task: θ' = θ − α ∇L(θ)."""
        cfg = self.config
        if cfg.inner_steps is not None and adapted.steps >= cfg.inner_steps:
            return adapted
        if adapted.kept is not None and adapted.steps >= (cfg.support_phases or 0):
            rows = adapted.kept
        # No task's loss knows of another's weights, so the sum's gradient is all of theirs.
        gradients = grad(lambda weights: self._losses(weights, rows).sum())(dict(adapted.weights))
        rate = cfg.inner_learning_rates[min(adapted.steps, len(cfg.inner_learning_rates) - 1)]
        weights = {
            name: weight - rate * adapted.factors.get(name, 1.0) * self._treated(gradients[name])
            for name, weight in adapted.weights.items()
        }
        kept = None if cfg.support_phases is None else rows
        return Adapted(weights, adapted.factors, adapted.steps + 1, kept)

    def replay(self, meta: Weights, phases: Sequence[Rows]) -> list[Adapted]:
        """Return how the inner loop stood while each phase was lived; the last is not adapted to."""
        states = [self.begin(meta, len(phases[0].weight))]
        for rows in phases[:-1]:
            states.append(self.advance(states[-1], rows))
        return states

    def _losses(self, weights: Weights, rows: Rows) -> Tensor:
        losses: Tensor = vmap(self.objective.loss)(self.network.stacked(weights, rows.observation), rows)
        return losses

    def _treated(self, gradient: Tensor) -> Tensor:
        return gradient.detach() if self.config.first_order else gradient


class MAMLCarry(NamedTuple):
    """What a MAML agent has learnt in the trial: weights of its own for each task; and its random stream."""

    adapted: Adapted
    generator: torch.Generator


class MAMLAgent:
    """Acts by weights that stand still during a phase; adapts them by one inner step between phases."""

    def __init__(self, meta: MetaWeights, inner: InnerLoop) -> None:
        self.meta, self.inner = meta, inner
        self.phase = Phase(episodes=1, lanes_per_task=inner.config.episodes_per_phase)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> MAMLCarry:
        """Return θ for every task."""
        return MAMLCarry(self.inner.begin(named(self.meta), num_tasks), generator)

    def act(self, carry: MAMLCarry, step: TimeStep) -> tuple[Choice, MAMLCarry]:
        """Choose in all lanes of all tasks by each task's weights."""
        lanes = self.phase.lanes_per_task
        encoded = self.inner.objective.encode(step.observation)
        observation = encoded.reshape(-1, lanes, *encoded.shape[1:])
        outputs = self.inner.outputs(carry.adapted, observation).flatten(0, 1)
        return self.inner.objective.choose(outputs, carry.generator), carry

    def adapt(self, carry: MAMLCarry, trajectory: Trajectory) -> MAMLCarry:
        """Take an inner step on what was just lived; thousands of tasks in as few parts as memory allows."""
        num_tasks = trajectory.mask.shape[1] // self.phase.lanes_per_task
        parts = [
            self._adapt_some(carry.adapted, trajectory, tasks)
            for tasks in in_parts(num_tasks, self.numbers_per_task(trajectory))
        ]
        return carry._replace(adapted=parts[0] if len(parts) == 1 else _joined(parts))

    def _adapt_some(self, adapted: Adapted, trajectory: Trajectory, tasks: slice) -> Adapted:
        lanes = self.phase.lanes_per_task
        columns = slice(tasks.start * lanes, tasks.stop * lanes)
        rows = self.inner.objective.rows(trajectory.columns(columns), lanes)
        return self.inner.advance(adapted.of(tasks), rows)

    def numbers_per_task(self, trajectory: Trajectory) -> int:
        """Return about how many numbers adapting to a task holds; its derivative holds twice as many."""
        rows = len(trajectory.mask) * self.phase.lanes_per_task
        units = sum(weight.shape[-1] for weight in self.meta.network.parameters())
        weights = sum(weight.numel() for weight in self.meta.network.parameters())
        return 4 * rows * units + 2 * weights


def named(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module by name."""
    return dict(module.named_parameters())


def by_row(field: Tensor, lanes: int) -> Tensor:
    """[T, num_tasks × lanes, ...] -> [num_tasks, lanes × T, ...]."""
    return by_lane(field, lanes).movedim(0, 2).flatten(1, 2)


def by_lane(field: Tensor, lanes: int) -> Tensor:
    """[T, num_tasks × lanes, ...] -> [T, num_tasks, lanes, ...]."""
    return field.reshape(len(field), -1, lanes, *field.shape[2:])


def normalised(weight: Tensor) -> Tensor:
    """Return weights [num_tasks, rows] that sum to 1 over the rows of each task."""
    return weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-12)


def _joined(parts: Sequence[Adapted]) -> Adapted:
    """Put tasks that were adapted in parts together again."""
    weights = {name: torch.cat([part.weights[name] for part in parts]) for name in parts[0].weights}
    kept = [part.kept for part in parts if part.kept is not None]
    rows = Rows(*(torch.cat(fields) for fields in zip(*kept, strict=True))) if kept else None
    return parts[0]._replace(weights=weights, kept=rows)
