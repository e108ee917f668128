"""MAML: initial weights that adapt to a new task by a few gradient steps.

    θ'ᵢ = θ − α ∇Lᵢ(θ)

Other files define the loss of a task and the outer step that learns θ: ``maml_trpo`` adapts by policy
gradients and learns by a trust region, ``maml_regression`` adapts by squared errors and learns by Adam.

Other rules may take the place of the gradient step (``rules``).

Source: Finn et al. 2017, *Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks*
(arXiv 1703.03400), algorithms 1 and 3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn
from torch.func import grad, vmap

from rl2meta.agents.numbers import Count, Positive
from rl2meta.agents.rows import Rows
from rl2meta.agents.rule import Rule, State, Weights
from rl2meta.agents.rules import SGD, AnyRule, MetaSGD
from rl2meta.beliefs import Told
from rl2meta.learner_state import under
from rl2meta.networks import legal_only
from rl2meta.parts import in_parts
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory, over_fields

AT_TEST = ("episodes_per_phase", "inner_learning_rates", "inner_steps", "rule", "support_phases")
"""The keys of an ``InnerConfig`` that may change after training: how the agent adapts."""


class InnerConfig(BaseModel):
    """The settings that all MAML agents share: the network, and how it adapts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_sizes: list[Count] = Field([64, 64], description="units in each hidden layer")
    episodes_per_phase: Count = Field(
        20, description="number of parallel episodes in each phase of a trial; an inner step follows a phase"
    )
    inner_learning_rates: Annotated[list[Positive], Field(min_length=1)] = Field(
        [0.1], description="α of the first, second, … inner step; later inner steps use the last α"
    )
    rule: AnyRule = Field(SGD(), description="how a gradient changes the weights: its name and its settings")
    learn_inner_rates: bool = Field(False, description="true: the same as rule meta_sgd instead of sgd")
    inner_steps: Annotated[int, Field(ge=0, le=2**20)] | None = Field(
        None, description="maximum number of gradient steps; null: one after every phase"
    )
    support_phases: Count | None = Field(
        None,
        description="number of support phases; inner steps beyond this number use the last of them again; "
        "null: each inner step uses the phase before it",
    )
    first_order: bool = Field(
        False, description="ignore the derivative of the inner gradient with respect to θ (FOMAML)"
    )

    @field_validator("rule", mode="before")
    @classmethod
    def _named(cls, rule: Any) -> Any:
        return {"name": rule} if isinstance(rule, str) else rule

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.learn_inner_rates and self.rule.name not in ("sgd", "meta_sgd"):
            raise ValueError(
                f"learn_inner_rates: expected false with rule {self.rule.name}, got true; it stands for the "
                "rule meta_sgd, so set one of the two"
            )
        return self

    def inner_rule(self) -> Rule:
        """Return the rule of the inner steps."""
        return MetaSGD() if self.learn_inner_rates else self.rule


class Objective(Protocol):
    """How the inner loop encodes, acts and learns on a task."""

    def encode(self, observation: Tensor) -> Tensor:
        """Return the network's input [..., size] for observations of the environment."""
        ...

    def choose(self, outputs: Tensor, generator: torch.Generator) -> Choice:
        """Choose an action in each row, for the network's outputs [B, ...]."""
        ...

    def tell(self, outputs: Tensor) -> Told:
        """Return what the network's outputs [B, ...] say that the agent prefers."""
        ...

    def rows(self, trajectory: Trajectory, lanes: int) -> Rows:
        """Return the examples of a phase for the inner loop; they use only what the agent saw."""
        ...

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Return the loss of one task, a scalar, for outputs [rows, ...] and rows without the task axis."""
        ...


class TaskNetwork(Protocol):
    """A network that can run with different weights for each task."""

    def stacked(self, weights: Weights, observation: Tensor) -> Tensor:
        """Return [num_tasks, rows, P] for encoded observations [num_tasks, rows, size]."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the network of one task."""
        ...


class MetaWeights(nn.Module):
    """The parameters of the outer loop: θ, and what it learns of the rule of the inner steps."""

    def __init__(self, network: nn.Module, config: InnerConfig) -> None:
        super().__init__()
        self.network = network
        for name, part in config.inner_rule().learnt(network).items():
            self.add_module(name, part)


class Adapted(NamedTuple):
    """The state of the inner loop: the adapted weights of each task.

    Attributes:
        weights: the network's parameters by name, stacked over tasks: [num_tasks, ...] each.
        learnt: the parameters of the rule, by name, shared by all tasks; empty if nothing of it is learnt.
        state: what the rule remembers of the steps before, tensors [num_tasks, ...].
        steps: number of gradient steps taken.
        kept: the last support phase, which later inner steps use again; None if nothing is kept.
    """

    weights: Weights
    learnt: Weights
    state: State
    steps: int
    kept: Rows | None

    def of(self, tasks: slice) -> "Adapted":
        """Return the state of a slice of the tasks."""
        weights = {name: value[tasks] for name, value in self.weights.items()}
        state = over_fields(lambda field: field[tasks], self.state)
        kept = None if self.kept is None else self.kept.of(tasks)
        return self._replace(weights=weights, state=state, kept=kept)


@dataclass(frozen=True)
class InnerLoop:
    """The inner loop. Acting runs it without gradients; the outer step differentiates through it.

    It adapts all tasks at once: their weights are stacked.

    Attributes:
        network: runs with the weights that it is given; its own weights are never used.
        objective: how to encode, act and learn on a task.
        config: how to adapt.
        keeps_support: whether the state holds what was learnt from last, although no later step needs it.
    """

    network: TaskNetwork
    objective: Objective
    config: InnerConfig
    keeps_support: ClassVar[bool] = False

    def begin(self, meta: Weights, num_tasks: int) -> Adapted:
        """Return ``num_tasks`` copies of θ, for the named parameters of a ``MetaWeights``."""
        theta = under("network.", meta)
        # [...] -> [num_tasks, ...]
        weights = {name: value.expand(num_tasks, *value.shape) for name, value in theta.items()}
        learnt = {name: value for name, value in meta.items() if not name.startswith("network.")}
        return self.start(weights, learnt)

    def start(self, weights: Weights, learnt: Weights) -> Adapted:
        """Return the state before the first step from weights [num_tasks, ...]; see ``Adapted``."""
        return Adapted(weights, learnt, self.config.inner_rule().begin(weights), 0, None)

    def outputs(self, adapted: Adapted, observation: Tensor, legal: Tensor | None = None) -> Tensor:
        """Return [num_tasks, rows, P] for encoded observations [num_tasks, rows, size].

        Where ``legal`` [num_tasks, rows, P] says that an action is illegal, it gets probability 0.
        """
        return legal_only(self.network.stacked(adapted.weights, observation), legal)

    def losses(self, adapted: Adapted, rows: Rows) -> Tensor:
        """Return the loss of each task, [num_tasks]."""
        return self._loss_of(self.outputs(adapted, rows.observation, rows.legal), rows)

    def advance(self, adapted: Adapted, rows: Rows) -> Adapted:
        """Take one step of the rule on every task: θ' = θ − α ∇L(θ) for sgd."""
        cfg = self.config
        if cfg.inner_steps is not None and adapted.steps >= cfg.inner_steps:
            return adapted
        learnt_all = cfg.support_phases is not None and adapted.steps >= cfg.support_phases
        if learnt_all and adapted.kept is not None:
            rows = adapted.kept
        rate = cfg.inner_learning_rates[min(adapted.steps, len(cfg.inner_learning_rates) - 1)]
        gradients = self._gradients(adapted.weights, rows)
        rule, learnt = cfg.inner_rule(), adapted.learnt
        weights, state = rule.step(adapted.weights, adapted.state, gradients, rate, learnt)
        kept = None if cfg.support_phases is None and not self.keeps_support else rows
        return Adapted(weights, learnt, state, adapted.steps + 1, kept)

    def _gradients(self, weights: Weights, rows: Rows) -> dict[str, Tensor]:
        """Return the gradient of each task's loss, by name, [num_tasks, ...] each."""
        # The loss of a task depends on its own weights only, so one gradient of the sum serves all tasks.
        gradients = grad(lambda theta: self._losses(theta, rows).sum())(dict(weights))
        return {name: g.detach() for name, g in gradients.items()} if self.config.first_order else gradients

    def replay(self, meta: Weights, phases: Sequence[Rows]) -> list[Adapted]:
        """Repeat the inner steps of a trial; return the state that acted in each phase.

        Args:
            meta: named parameters of a ``MetaWeights``, [...] each.
            phases: the rows of each phase, [num_tasks, rows, ...]; no inner step follows the last phase.

        Returns:
            One state for each phase, with weights [num_tasks, ...]; the first state holds θ.
        """
        states = [self.begin(meta, len(phases[0].weight))]  # θ [...] -> [num_tasks, ...]
        for rows in phases[:-1]:
            states.append(self.advance(states[-1], rows))
        return states

    def _losses(self, weights: Weights, rows: Rows) -> Tensor:
        # [num_tasks, rows, P]
        outputs = legal_only(self.network.stacked(weights, rows.observation), rows.legal)
        return self._loss_of(outputs, rows)

    def _loss_of(self, outputs: Tensor, rows: Rows) -> Tensor:
        losses: Tensor = vmap(self.objective.loss)(outputs, rows)  # [num_tasks, rows, P] -> [num_tasks]
        return losses


Start = Callable[[int, torch.Generator], Adapted]


class MAMLCarry(NamedTuple):
    """What a MAML agent has learnt in the trial, the adapted weights of each task; and its random stream."""

    adapted: Adapted
    generator: torch.Generator


class MAMLAgent:
    """Acts with fixed weights during a phase, and adapts them by one inner step between phases.

    Args:
        meta: the parameters of the outer loop.
        inner: the inner loop.
        start: (number of tasks, generator) -> the state at the start of a trial; None: copies of θ.
    """

    def __init__(self, meta: nn.Module, inner: InnerLoop, start: Start | None = None) -> None:
        self.meta, self.inner = meta, inner
        self._start = start or (lambda num_tasks, _: inner.begin(named(meta), num_tasks))
        self.phase = Phase(episodes=1, lanes_per_task=inner.config.episodes_per_phase)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> MAMLCarry:
        """Return the initial weights of every task."""
        return MAMLCarry(self._start(num_tasks, generator), generator)

    def act(self, carry: MAMLCarry, step: TimeStep) -> tuple[Choice, MAMLCarry]:
        """Choose an action in every lane with the weights of its task."""
        return self.inner.objective.choose(self._outputs(carry, step), carry.generator), carry

    def act_and_tell(self, carry: MAMLCarry, step: TimeStep) -> tuple[Choice, MAMLCarry, Told]:
        """Do what ``act`` does, and tell what the adapted network prefers."""
        outputs, objective = self._outputs(carry, step), self.inner.objective
        return objective.choose(outputs, carry.generator), carry, objective.tell(outputs)

    def _outputs(self, carry: MAMLCarry, step: TimeStep) -> Tensor:
        lanes = self.phase.lanes_per_task
        encoded = self.inner.objective.encode(step.observation)  # [num_tasks × lanes, size]
        observation = encoded.reshape(-1, lanes, *encoded.shape[1:])  # [num_tasks, lanes, size]
        outputs = self.inner.outputs(carry.adapted, observation).flatten(0, 1)  # [num_tasks × lanes, P]
        return legal_only(outputs, step.legal)

    def adapt(self, carry: MAMLCarry, trajectory: Trajectory) -> MAMLCarry:
        """Take an inner step on the last phase, in as few parts of the tasks as memory allows."""
        num_tasks = trajectory.mask.shape[1] // self.phase.lanes_per_task
        parts = [
            self._adapt_some(carry.adapted, trajectory, tasks)
            for tasks in in_parts(num_tasks, self.numbers_per_task(trajectory))
        ]
        return carry._replace(adapted=parts[0] if len(parts) == 1 else rejoined(parts))

    def _adapt_some(self, adapted: Adapted, trajectory: Trajectory, tasks: slice) -> Adapted:
        lanes = self.phase.lanes_per_task
        columns = slice(tasks.start * lanes, tasks.stop * lanes)
        # [T, num_tasks × lanes, ...] -> [num_tasks, lanes × T, ...]
        rows = self.inner.objective.rows(trajectory.columns(columns), lanes)
        return self.inner.advance(adapted.of(tasks), rows)

    def numbers_per_task(self, trajectory: Trajectory, per_unit: int = 4) -> int:
        """Estimate how many numbers an inner step holds per task; its derivative holds twice as many.

        ``per_unit`` of them belong to each unit of the network in each row.
        """
        rows = len(trajectory.mask) * self.phase.lanes_per_task
        units = sum(weight.shape[-1] for weight in self.inner.network.parameters())
        weights = sum(weight.numel() for weight in self.inner.network.parameters())
        return per_unit * rows * units + (2 + self.inner.config.inner_rule().numbers_per_weight) * weights


def named(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module by name."""
    return dict(module.named_parameters())


def rejoined(parts: Sequence[Adapted]) -> Adapted:
    """Join the parts of the tasks again, along their first axis."""
    weights = {name: torch.cat([part.weights[name] for part in parts]) for name in parts[0].weights}
    kept = [part.kept for part in parts if part.kept is not None]
    rows = Rows(*(torch.cat(fields) for fields in zip(*kept, strict=True))) if kept else None
    state = over_fields(lambda *each: torch.cat(each), *(part.state for part in parts))
    return parts[0]._replace(weights=weights, state=state, kept=rows)
