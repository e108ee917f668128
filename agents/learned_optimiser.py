"""A learned optimiser: only the rule of the inner steps is learnt, and initial weights are drawn anew.

    min over φ  E [ Σₜ Lₜ(θₜ) ],    θₜ₊₁, hₜ₊₁ = rule_φ(θₜ, hₜ, ∇Lₜ(θₜ)),    θ₀ ~ N(0, σ²)

A task is a loss over the weights θ of a network, the *optimisee*: its examples come phase by phase, and a
step of the rule follows each phase. What was lived does not depend on θ, because the examples do not
depend on what the agent guesses. So an update draws θ₀ itself, walks along the trial again, and takes an
outer step after every ``unroll`` inner steps; θ and h go on from there without their gradients.

Source: Andrychowicz et al. 2016 (arXiv 1606.04474), section 2 and the authors' code.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl2meta.adam import Adam
from rl2meta.agents.maml import Adapted, named, rejoined
from rl2meta.agents.optimisee import (
    LearnedOptimiserConfig,
    hand_made_rules,
    inner_loop,
    optimising_agent,
)
from rl2meta.agents.rows import Rows
from rl2meta.errors import UserError
from rl2meta.learner_state import load_state, seeded, state_of
from rl2meta.parts import in_parts
from rl2meta.shards import ALONE, Lost, Shards, set_gradients
from rl2meta.training import AgentKind, WholeIsOneShard, linear, set_rate
from rl2meta.trial import Trial, over_fields


class LearnedOptimiserLearner(WholeIsOneShard):
    """Adam on the sum of the losses along truncated unrolls of the inner loop.

    Args:
        observation_space, action_space: of one environment; a prediction is an action.
        config: hyper-parameters.
        device: where the weights live.
        seed: of the initial weights of the rule, the same on every device.

    Raises:
        UserError: if actions are not vectors of numbers, observations are images, or nothing of the rule is
            learnt.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: LearnedOptimiserConfig,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.config = config
        self.network, self.inner = inner_loop(observation_space, action_space, config)
        rule = config.inner_rule()
        self.learnt = seeded(lambda: nn.ModuleDict(rule.learnt(self.network)), seed).to(device)
        if not list(self.learnt.parameters()):
            raise UserError(
                f"agent.rule: expected a rule that can learn, lstm or meta_sgd, got {config.rule.name}; to "
                "see what it does untrained, name it in evaluation.against"
            )
        if config.inner_steps == 0:
            raise UserError("agent.inner_steps: expected at least 1 step of the rule to learn from, got 0")
        self.agent = optimising_agent(self.network, self.inner, self.learnt, config)
        self.optimizer = Adam(self.learnt.parameters(), lr=config.learning_rate, fused=True)

    def update_shards(
        self,
        trials: Sequence[Trial],
        progress: float,
        generators: Sequence[torch.Generator],
        shards: Shards,
    ) -> dict[str, float]:
        """Walk along the trials ``passes`` times, from new initial weights that each shard draws."""
        cfg = self.config
        rate = linear(cfg.learning_rate, cfg.final_learning_rate, progress)
        set_rate(self.optimizer, rate)
        batches = [self._batches(trial) for trial in trials]
        means = [self._walk(batches, generators, shards) for _ in range(cfg.passes)]
        losses = torch.tensor(means, dtype=torch.float64).mean(dim=0)  # [passes, unrolls] -> [unrolls]
        return {
            "loss": float(losses.mean()),
            "loss_of_first_unroll": float(losses[0]),
            "loss_of_last_unroll": float(losses[-1]),
            "learning_rate": rate,
        }

    def _batches(self, trial: Trial) -> list[Rows]:
        """Return the examples of each phase."""
        lanes = self.config.episodes_per_phase
        batches = [self.inner.objective.rows(phase, lanes) for phase in trial.phases]
        if len(batches) < 2:
            raise UserError(
                "training.episodes_per_trial: expected at least two phases of agent.episodes_per_phase "
                f"examples, before and after a step of the rule, got {len(batches)}"
            )
        steps = self.config.inner_steps  # where no step follows, nothing is learnt
        return batches if steps is None else batches[: steps + 1]

    def _walk(
        self,
        batches: Sequence[Sequence[Rows]],
        generators: Sequence[torch.Generator],
        shards: Shards = ALONE,
    ) -> list[float]:
        """Take an outer step after every unroll; return the mean loss along each.

        Args:
            batches: the examples of each phase, for each own shard.
            generators: one for each own shard.
            shards: of the whole batch.
        """
        starts = zip(batches, generators, strict=True)
        states = [self._drawn(len(rows[0].weight), generator) for rows, generator in starts]
        means = []
        for first in range(0, len(batches[0]) - 1, self.config.unroll):
            unrolled = [rows[first : first + self.config.unroll + 1] for rows in batches]
            states, mean = self._outer_step(states, unrolled, shards)
            means.append(mean)
        return means

    def _drawn(self, num_tasks: int, generator: torch.Generator) -> Adapted:
        weights = self.network.drawn(num_tasks, self.config.initial_deviation, generator)
        device = next(self.learnt.parameters()).device
        return self.inner.start({name: w.to(device) for name, w in weights.items()}, named(self.learnt))

    def _outer_step(
        self, states: Sequence[Adapted], batches: Sequence[Sequence[Rows]], shards: Shards
    ) -> tuple[list[Adapted], float]:
        """Take an outer step on an unroll; return the states at its end and the mean loss along it."""
        ends: list[Adapted] = []
        losses = [partial(self._lost, ends, *each) for each in zip(states, batches, strict=True)]
        told = set_gradients(list(self.learnt.parameters()), losses, shards)
        if self.config.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.learnt.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()
        return ends, float(told["sum"]) / (len(batches[0]) - 1)

    def _lost(self, ends: list[Adapted], state: Adapted, batches: Sequence[Rows]) -> Lost:
        """Return the loss along an unroll; append the state at its end to ``ends``.

        Where tasks are divided into parts, the gradients of all but the last are added here already, so that
        one graph exists at a time.
        """
        num_tasks, reached = len(batches[0].weight), list[Adapted]()
        loss = total = torch.zeros((), device=batches[0].weight.device)
        for tasks in in_parts(num_tasks, self._numbers_per_task(batches)):
            if reached:
                loss.backward()  # type: ignore[no-untyped-call]
            end, loss = self._unroll(state.of(tasks), [rows.of(tasks) for rows in batches], num_tasks)
            reached.append(end)
            total = total + loss.detach()
        ends.append(rejoined(reached))
        return Lost(loss, torch.ones_like(loss), {"sum": total})

    def _unroll(self, state: Adapted, batches: Sequence[Rows], num_tasks: int) -> tuple[Adapted, Tensor]:
        """Return the last state of some of the tasks, and their part of Σₜ Lₜ(θₜ).

        A loss is that of the examples that come after the step, as in an evaluation.
        """
        total = torch.zeros((), device=batches[0].weight.device)
        for now, then in itertools.pairwise(batches):
            state = self.inner.advance(state, now)
            total = total + self.inner.losses(state, then).sum() / num_tasks  # [tasks of the part] -> []
        return _without_graph(state), total

    def _numbers_per_task(self, batches: Sequence[Rows]) -> int:
        """Estimate how many numbers the graph of one task holds along an unroll."""
        weights = list(self.network.parameters())
        held = sum(w.numel() for w in weights) * (4 + self.config.inner_rule().numbers_per_weight)
        rows = batches[0].weight.shape[1] * sum(w.shape[0] for w in weights)
        return (len(batches) - 1) * (held + 4 * rows)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights and the optimiser's state as named tensors."""
        return state_of(self.learnt, self.optimizer)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights and the optimiser's state; names and shapes must match exactly."""
        load_state(state, self.learnt, self.optimizer)


def _without_graph(state: Adapted) -> Adapted:
    cut = Tensor.detach
    return state._replace(weights=over_fields(cut, state.weights), state=over_fields(cut, state.state))


LEARNED_OPTIMISER = AgentKind(
    "a rule of gradient steps, such as an LSTM, that trains networks from random initial weights",
    LearnedOptimiserConfig,
    LearnedOptimiserLearner,
    (
        *("hidden_sizes", "activation", "bias", "initial_deviation", "loss"),
        *("episodes_per_phase", "inner_learning_rates", "inner_steps", "support_phases"),
    ),
    references=hand_made_rules,
)
