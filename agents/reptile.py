"""Reptile: initial weights close to where a few gradient steps lead on every task.

    φ ← φ + ε E_tasks[φ̃ᵢ − φ],    φ̃ᵢ = φ after k inner steps on task i

No derivative of the inner steps is taken, and yet this is more than joint training for k > 1. With SGD on
minibatches of one task, whose gradients at φ are g₁, g₂, …,

    E[φ̃ − φ] = −α k E[g] + α² k(k − 1)/4 · ∇E[g₁ᵀg₂] + O(α³)

The first part goes down the joint loss. The second makes gradients of different minibatches of a task agree:
a step on one then helps the other. MAML's gradient, E[g] − α ∇E[g₁ᵀg₂] + O(α²), has the same two parts.

Source: Nichol, Achiam & Schulman 2018, *On First-Order Meta-Learning Algorithms* (arXiv 1803.02999),
algorithm 2 and section 5.1. The minibatches and the second moments that stay: the authors' code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

import gymnasium as gym
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from rl2meta.agents.maml import (
    Adapted,
    InnerConfig,
    InnerLoop,
    MAMLAgent,
    MAMLCarry,
    MetaWeights,
    named,
    rejoined,
)
from rl2meta.agents.moments import Moments
from rl2meta.agents.numbers import Count, NonNegative, Positive
from rl2meta.agents.objectives import ObjectiveConfig, SquaredErrorConfig, learnt_from
from rl2meta.agents.rows import Rows, episode_return
from rl2meta.agents.rule import Rule, Weights
from rl2meta.agents.rules import SGD, AnyRule
from rl2meta.errors import UserError
from rl2meta.learner_state import load_state, named_under, seeded, state_of, under
from rl2meta.parts import in_parts
from rl2meta.shards import Shards
from rl2meta.training import AgentKind, WholeIsOneShard, linear
from rl2meta.trial import Trial


class ReptileConfig(BaseModel):
    """The hyper-parameters of Reptile."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    objective: ObjectiveConfig = Field(
        SquaredErrorConfig(), description="the loss of a task: its name and its settings"
    )
    hidden_sizes: list[Count] = Field([64, 64], description="units in each hidden layer")
    episodes_per_phase: Count = Field(
        10, description="number of parallel episodes in each phase of a trial; an inner step follows a phase"
    )
    inner_learning_rates: Annotated[list[Positive], Field(min_length=1)] = Field(
        [0.02], description="α of the first, second, … inner step; later inner steps use the last α"
    )
    rule: AnyRule = Field(SGD(), description="how a gradient changes the weights: its name and its settings")
    keep_moments: bool = Field(
        False,
        description="begin each trial with what the rule remembered at the end of the last update, such as "
        "Adam's second moments, as a mean over tasks; false: it begins anew",
    )
    inner_steps: Annotated[int, Field(ge=0, le=2**20)] | None = Field(
        None, description="maximum number of gradient steps in a trial; null: one after every phase"
    )
    support_phases: Count | None = Field(
        None,
        description="number of support phases; inner steps beyond this number use the last of them again; "
        "null: each inner step uses the phase before it",
    )
    minibatch: Count | None = Field(
        None,
        description="number of examples in each inner step of an update, drawn from all phases of a trial "
        "together; null: each step takes a whole phase, as the agent does when it acts",
    )
    training_steps: Count | None = Field(
        None, description="k, the number of minibatches in an update; null: as many as one pass has"
    )
    meta_step: Positive = Field(1.0, description="ε at the start of training")
    final_meta_step: NonNegative | None = Field(
        0.0, description="ε at the end of training, to which it falls linearly; null: no change"
    )

    @field_validator("rule", "objective", mode="before")
    @classmethod
    def _named(cls, part: Any) -> Any:
        return {"name": part} if isinstance(part, str) else part

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.training_steps is not None and self.minibatch is None:
            raise ValueError(
                f"training_steps null without a minibatch, got {self.training_steps}; set minibatch, or more "
                "phases by training.episodes_per_trial"
            )
        return self

    def inner(self, as_in_acting: bool = True) -> InnerConfig:
        """Return how the inner loop adapts: in a trial, or on the minibatches of an update."""
        return InnerConfig(
            hidden_sizes=self.hidden_sizes,
            episodes_per_phase=self.episodes_per_phase,
            inner_learning_rates=self.inner_learning_rates,
            rule=self.rule,
            inner_steps=self.inner_steps if as_in_acting else None,
            support_phases=self.support_phases if as_in_acting else None,
            first_order=True,
        )


class ReptileAgent(MAMLAgent):
    """Adapts as a MAML agent does; its rule may begin with what it remembers of the tasks before.

    Attributes:
        moments: this memory; None: the rule begins anew.
    """

    def __init__(self, meta: MetaWeights, inner: InnerLoop, moments: Moments | None) -> None:
        super().__init__(meta, inner)
        self.moments = moments

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> MAMLCarry:
        """Return φ for every task."""
        return MAMLCarry(self.start(num_tasks), generator)

    def start(self, num_tasks: int) -> Adapted:
        """Return the state of the inner loop before its first step."""
        new = self.inner.begin(named(self.meta), num_tasks)
        if self.moments is None:
            return new
        return new._replace(state=self.moments.begin(new.state))  # [...] -> [num_tasks, ...]


class ReptileLearner(WholeIsOneShard):
    """Moves φ towards where the inner steps lead: φ ← φ + ε E_tasks[φ̃ᵢ − φ].

    Args:
        observation_space, action_space: of one environment.
        config: hyper-parameters.
        device: where the weights live.
        seed: of the initial weights, the same on every device.

    Raises:
        UserError: for spaces that do not fit the objective, and for settings that would do nothing or harm.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: ReptileConfig,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.config = config
        given = observation_space, action_space, config.hidden_sizes, config.objective
        self.learnt = seeded(lambda: learnt_from(*given), seed)
        network, objective = self.learnt.network, self.learnt.objective
        _refuse_unfit(config, config.rule, network, self.learnt.on_policy)
        self.meta = MetaWeights(network, config.inner()).to(device)
        self.learnt.units.to(device)
        self.moments = Moments(config.rule, network).to(device) if config.keep_moments else None
        self.inner = self.learnt.loop(network, objective, config.inner())
        self.agent = ReptileAgent(self.meta, self.inner, self.moments)

    @torch.no_grad()
    def update_shards(
        self,
        trials: Sequence[Trial],
        progress: float,
        generators: Sequence[torch.Generator],
        shards: Shards,
    ) -> dict[str, float]:
        """Take the inner steps on every task, and move φ towards the mean of where they lead."""
        cfg = self.config
        reached = [self._reached_by(*pair) for pair in zip(trials, generators, strict=True)]
        step = linear(cfg.meta_step, cfg.final_meta_step, progress)
        distance = self._move([each.weights for each in reached], step, shards)
        if self.moments is not None:
            self.moments.keep([each.state for each in reached], shards)
        self.learnt.measure(trials, shards)
        return {
            "meta_step": step,
            "distance": distance,
            "return_before": float(shards.mean([episode_return(trial.phases[0]) for trial in trials])),
            "return_after": float(shards.mean([episode_return(trial.phases[-1]) for trial in trials])),
        }

    def _reached_by(self, trial: Trial, generator: torch.Generator) -> Adapted:
        lanes = self.config.episodes_per_phase
        phases = [self.learnt.objective.rows(phase, lanes) for phase in trial.phases]
        numbers = len(phases) * self.agent.numbers_per_task(trial.phases[0])
        return self.reached(self.batches(phases, generator), numbers)

    def batches(self, phases: Sequence[Rows], generator: torch.Generator) -> Sequence[Rows]:
        """Return the examples of each inner step: the phases, or minibatches of all of them together.

        A pass takes every example once, in random order, the same for all tasks. A minibatch may take the
        last examples of one pass and the first of the next.

        Args:
            phases: the rows of each phase, [num_tasks, rows, ...].
            generator: draws the order.
        """
        size, steps = self.config.minibatch, self.config.training_steps
        if size is None:
            return phases
        pool = Rows(*(torch.cat(fields, dim=1) for fields in zip(*phases, strict=True)))
        rows = pool.weight.shape[1]  # phases × rows
        if rows < size:
            raise UserError(
                f"agent.minibatch: expected at most the {rows} examples of a trial "
                f"(training.episodes_per_trial × steps of an episode), got {size}; use fewer, or a longer one"
            )
        steps = steps or rows // size
        passes = -(-steps * size // rows)
        order = torch.cat([torch.randperm(rows, generator=generator) for _ in range(passes)])
        index = order[: steps * size].to(pool.weight.device)
        return [pool.take(each) for each in torch.split(index, size)]

    def reached(self, batches: Sequence[Rows], numbers_per_task: int = 1) -> Adapted:
        """Return φ̃ of every task, [num_tasks, ...], after one inner step on each batch from φ.

        Args:
            batches: the rows of each step, [num_tasks, rows, ...].
            numbers_per_task: about how many numbers this holds for each task; it is done in as few parts of
                the tasks as memory allows.
        """
        acting = self.config.minibatch is None
        loop = replace(self.inner, config=self.config.inner(as_in_acting=acting))
        parts = []
        for tasks in in_parts(len(batches[0].weight), numbers_per_task):
            state = self.agent.start(len(batches[0].weight[tasks]))
            for rows in batches:
                state = loop.advance(state, rows.of(tasks))
            parts.append(state)
        return rejoined(parts)

    def _move(self, reached: Sequence[Weights], step: float, shards: Shards) -> float:
        """Take the outer step in place; return the distance from φ to the mean of φ̃ over all shards."""
        squared = torch.zeros((), dtype=torch.float64)
        for name, weight in self.learnt.network.named_parameters():
            mean = shards.mean([each[name].mean(dim=0) for each in reached])  # [num_tasks, ...] -> [...]
            difference = mean - weight
            weight.add_(step * difference)  # in place: a recorded rollout reads this memory
            squared += difference.double().square().sum().cpu()
        return float(squared.sqrt())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights, what the rule remembers and what was measured, as named tensors."""
        kept = {} if self.moments is None else named_under("moments.", self.moments)
        return state_of(self.meta) | kept | named_under("units.", self.learnt.units)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state from ``state_dict``; names and shapes must match exactly."""
        load_state(state, self.meta)
        if self.moments is not None:
            self.moments.load_state_dict(under("moments.", state))
        self.learnt.units.load_state_dict(under("units.", state))


def _refuse_unfit(config: ReptileConfig, rule: Rule, network: nn.Module, on_policy: bool) -> None:
    if config.inner_steps == 0 and config.minibatch is None:
        raise UserError(
            "agent.inner_steps: expected at least 1 without a minibatch, got 0, which would move no weight"
        )
    if rule.learnt(network):
        raise UserError(
            f"agent.rule: expected a rule that has nothing to learn, got {config.rule.name}; Reptile takes "
            "no derivative of its inner steps: use sgd or adam, or an agent of MAML"
        )
    if config.keep_moments and not list(Moments(rule, network).buffers()):
        raise UserError(
            f"agent.keep_moments: expected false with rule {config.rule.name}, which remembers nothing, got "
            "true"
        )
    if config.minibatch is not None and on_policy:
        raise UserError(
            f"agent.minibatch: expected null with objective {config.objective.name}, got {config.minibatch}; "
            "a policy gradient needs actions of the weights that it changes, so each inner step takes a "
            "phase; their number is training.episodes_per_trial / agent.episodes_per_phase"
        )


REPTILE = AgentKind(
    "initial weights near those that a few gradient steps lead to, for any loss; learnt by first order",
    ReptileConfig,
    ReptileLearner,
    ("episodes_per_phase", "inner_learning_rates", "inner_steps", "support_phases", "objective.transductive"),
    network=("objective",),
    training_only=("moments",),
)
