"""The outer loop of MAML for supervised tasks: Adam on the loss after adaptation.

    min over θ of E_tasks[Lᵢ(θ'ᵢ)], with θ'ᵢ from the inner steps on the support and Lᵢ on the queries

``maml_regression`` and ``maml_classification`` share it; they differ in network and loss.

Source: Finn et al. 2017 (arXiv 1703.03400), algorithm 2.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor

from rl2meta.adam import Adam
from rl2meta.agents.maml import Adapted, InnerConfig, InnerLoop, MAMLAgent, MetaWeights, named
from rl2meta.agents.numbers import Count, Positive
from rl2meta.agents.rows import Rows, normalised
from rl2meta.learner_state import load_state, state_of
from rl2meta.shards import Lost, Shards, set_gradients
from rl2meta.training import WholeIsOneShard, linear, set_rate
from rl2meta.trial import Trial


class Rates(Protocol):
    """Settings with Adam's learning rate."""

    @property
    def learning_rate(self) -> float:
        """At the start of training."""
        ...

    @property
    def final_learning_rate(self) -> float | None:
        """At the end of training; None: no change."""
        ...


class OuterAdamConfig(InnerConfig):
    """The settings of inner steps on examples, and of Adam."""

    support_phases: Count | None = Field(
        1,
        description="number of support phases; inner steps beyond this number use the last of them again; "
        "null: each inner step uses the phase before it",
    )
    learning_rate: Positive = Field(1e-3, description="Adam's learning rate at the start of training")
    final_learning_rate: Positive | None = Field(
        None, description="Adam's learning rate at the end of training; null: no change"
    )


class StepOnLoss(WholeIsOneShard):
    """A learner that takes one step of Adam on the loss of a batch of trials.

    Attributes:
        config: Adam's learning rates, among others.
        optimizer: of ``weights``.
        weights: all that is learnt.
    """

    config: Rates
    optimizer: Adam
    weights: list[Tensor]

    def update_shards(
        self,
        trials: Sequence[Trial],
        progress: float,
        generators: Sequence[torch.Generator],
        shards: Shards,
    ) -> dict[str, float]:
        """Take one step on the shards of a batch, which have the same number of tasks."""
        losses = [partial(self.lost, trial) for trial in trials]
        return take_step(self.optimizer, self.weights, losses, self.config, progress, shards)

    @abstractmethod
    def lost(self, trial: Trial) -> Lost:
        """Return the loss of a shard, with its gradient, and what the metrics tell of it."""


class OuterAdam(StepOnLoss):
    """The learner of an agent that adapts to examples.

    Args:
        meta: θ, and what is learnt of the rule of the inner steps.
        inner: the inner loop.
        config: hyper-parameters.
    """

    config: OuterAdamConfig

    def __init__(self, meta: MetaWeights, inner: InnerLoop, config: OuterAdamConfig) -> None:
        self.meta, self.inner, self.config = meta, inner, config
        self.agent = MAMLAgent(meta, inner)
        self.weights = list(meta.parameters())
        self.optimizer = Adam(self.weights, lr=config.learning_rate, fused=True)

    def lost(self, trial: Trial) -> Lost:
        """Return the loss on the phases after the last inner step, through the inner steps."""
        lanes = self.config.episodes_per_phase
        phases = [self.inner.objective.rows(phase, lanes) for phase in trial.phases]
        states = self.inner.replay(named(self.meta), phases)
        loss = self.inner.losses(states[-1], judged(states, phases)).mean()  # [num_tasks] -> []
        return Lost(loss, torch.ones_like(loss), {"loss": loss})

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights and the optimiser's state as named tensors."""
        return state_of(self.meta, self.optimizer)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights and the optimiser's state; names and shapes must match exactly."""
        load_state(state, self.meta, self.optimizer)


def take_step(
    optimizer: Adam,
    weights: Sequence[Tensor],
    losses: Sequence[Callable[[], Lost]],
    config: Rates,
    progress: float,
    shards: Shards,
) -> dict[str, float]:
    """Take one step on the losses of all shards; return what they tell, and the learning rate."""
    rate = linear(config.learning_rate, config.final_learning_rate, progress)
    set_rate(optimizer, rate)
    told = set_gradients(weights, losses, shards)
    optimizer.step()
    return {**{name: float(each) for name, each in told.items()}, "learning_rate": rate}


def judged(states: Sequence[Adapted], phases: Sequence[Rows]) -> Rows:
    """Return the rows of all phases in which the last weights acted: one, or more after ``inner_steps``."""
    last = [rows for state, rows in zip(states, phases, strict=True) if state is states[-1]]
    if len(last) == 1:
        return last[0]
    together = Rows(*(torch.cat(fields, dim=1) for fields in zip(*last, strict=True)))
    return together._replace(weight=normalised(together.weight))
