"""Planners for small MDPs that plan again at every step, from all that was seen before it.

The planners of ``tabular.py`` plan once per episode, as the published ones do: what an episode shows, they
use in the next. An agent that learns at every step can only be compared with planners that do so too.

All of them solve the posterior's mean MDP for the rest of the episode. They differ in the bonus for pairs
(s, a) with few visits, which pays for exploration.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.agents.references.planning import beb_rewards, cached_parts
from rl2meta.agents.references.reference import Reference, require
from rl2meta.agents.references.tabular import SCALINGS, Prior, any_best, rewards_told
from rl2meta.beliefs import Amounts, Told
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory


class Seen(NamedTuple):
    """The carry: what was seen in B MDPs; pairs (s, a) have the index s·A + a.

    Attributes:
        visits: N(s, a), number of visits, float [B, S × A].
        totals: sum of the rewards of (s, a), [B, S × A].
        weights: parameters of the Dirichlet posterior of P(s' | s, a), [B, S', S × A]. The next state comes
            before the pair, so an expectation over it is a product vector times matrix.
        weight: their sum over s', [B, S × A].
        state: the state of the last action, int64 [B].
        steps: number of steps of the trial so far; a Python number, so it needs no device.
        generator: random stream of the agent.
    """

    visits: Tensor
    totals: Tensor
    weights: Tensor
    weight: Tensor
    state: Tensor
    steps: int
    generator: torch.Generator

    def after(self, step: TimeStep) -> "Seen":
        """Return what was seen including the last action's reward and next state.

        An action changes one entry of ``weights``. The first observation of an episode is no next state.
        """
        num_pairs, num_actions = self.visits.shape[1], step.action.shape[1]
        pair = (self.state * num_actions + step.action.argmax(dim=1)).unsqueeze(1)
        moved = step.action.sum(dim=1, keepdim=True)  # 0 at a trial's first step, where no action was
        followed = moved * ~step.first.unsqueeze(1)
        state = step.observation.long()
        entry = state.unsqueeze(1) * num_pairs + pair
        return self._replace(
            visits=self.visits.scatter_add(1, pair, moved),
            totals=self.totals.scatter_add(1, pair, moved * step.reward.unsqueeze(1)),
            weights=self.weights.flatten(1).scatter_add(1, entry, followed).view(self.weights.shape),
            weight=self.weight.scatter_add(1, pair, followed),
            state=state,
        )

    def of(self, part: slice) -> "Seen":
        """Return the same of a slice of the MDPs."""
        return Seen(*(x[part] if isinstance(x, Tensor) else x for x in self))  # type: ignore[arg-type]


class Belief(NamedTuple):
    """What a bonus may depend on.

    Attributes:
        mean: of the posterior of the mean reward, [B, S × A].
        precision: 1 / variance of the posterior of the mean reward, [B, S × A].
        visits: N(s, a), [B, S × A].
        weight: sum of the parameters of the Dirichlet posterior of P(· | s, a), [B, S × A].
        episode: number of completed episodes of the trial.
    """

    mean: Tensor
    precision: Tensor
    visits: Tensor
    weight: Tensor
    episode: int


Bonus = Callable[[Belief], tuple[Tensor, Tensor | None]]
"""Belief -> r [B, S × A], the reward with its bonus, and the bonus for each later step (None for no such)."""


def no_bonus(belief: Belief) -> tuple[Tensor, None]:
    """Return the posterior's mean rewards."""
    return belief.mean, None


def beb_bonus(belief: Belief, horizon: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Return the bonuses of ``planning.beb``, which pay more the more steps follow."""
    return beb_rewards(belief.mean, belief.precision, belief.weight, horizon, scaling)


def visit_bonus(belief: Belief, bonus: float) -> tuple[Tensor, None]:
    """Return r̂(s, a) + b / (1 + N(s, a))."""
    return belief.mean + bonus / (1 + belief.visits), None


def fading_bonus(belief: Belief, bonus: float, num_episodes: int) -> tuple[Tensor, None]:
    """Return r̂(s, a) + b (k / n) / (1 + N(s, a)), with k of n episodes left, the present one included."""
    left = max(0, num_episodes - belief.episode) / num_episodes
    return visit_bonus(belief, bonus * left)


@dataclass(frozen=True)
class ReplanningAgent:
    """Solves the posterior's mean MDP at every step, and takes the best action; ties are random.

        Q_t = r + (H − 1 − t) c + P̂ V_{t+1},  V_t(s) = maxₐ Q_t(s, a),  V_H = 0

    where the rewards r and the bonuses c, of each step that follows, depend on the bonus, and P̂ is the
    posterior mean. Step t of an episode needs only H − t backups.

    Attributes:
        prior: of the MDP.
        horizon: H, the steps in every episode.
        bonus: pays for exploration.
    """

    prior: Prior
    horizon: int
    bonus: Bonus
    phase: Phase = field(default=Phase(episodes=None), init=False)  # the carry moves while it acts

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Seen:
        """Return the prior."""
        prior, device = self.prior, generator.device
        shape = (num_tasks, prior.num_states * prior.num_actions)
        nothing = torch.zeros(shape, device=device)
        weights = torch.full((num_tasks, prior.num_states, shape[1]), prior.concentration, device=device)
        nowhere = torch.zeros(num_tasks, dtype=torch.int64, device=device)
        weight = nothing + prior.num_states * prior.concentration
        return Seen(nothing, nothing, weights, weight, nowhere, 0, generator)

    def act(self, carry: Seen, step: TimeStep) -> tuple[Choice, Seen]:
        """Learn from the last action, plan the rest of the episode, and take the plan's first action."""
        seen, value = self._planned(carry, step)
        action = any_best(value, seen.generator)
        return Choice(action, action), seen._replace(steps=seen.steps + 1)

    def act_and_tell(self, carry: Seen, step: TimeStep) -> tuple[Choice, Seen, Told]:
        """Do what ``act`` does; tell the plan and the posterior of the rewards in the present state."""
        seen, value = self._planned(carry, step)
        shape = (len(value), self.prior.num_states, self.prior.num_actions)
        rows = torch.arange(len(value), device=value.device)
        mean, precision = self.prior.rewards(seen.visits, seen.totals)
        told: Told = {
            "plan: value of each action here, bonuses included": Amounts(value),
            "posterior of each action's mean reward here": rewards_told(
                *(each.view(shape)[rows, seen.state] for each in (mean, precision))
            ),
        }
        return *self.act(carry, step), told

    def _planned(self, carry: Seen, step: TimeStep) -> tuple[Seen, Tensor]:
        """Return what was seen including this step, and the value of each action, [B, A]."""
        seen = carry.after(step)
        # Parts of a multiple of 16 MDPs are views whose products round as those of the whole.
        parts = cached_parts(seen.weights, multiple_of=16)
        return seen, torch.cat([self.action_value(seen.of(part)) for part in parts])

    def adapt(self, carry: Seen, trajectory: Trajectory) -> Seen:
        """Return the carry as it is: the agent learns while it acts."""
        return carry

    def action_value(self, seen: Seen) -> Tensor:
        """Return Q_t(s, ·) in the present states, with the bonuses, [B, A]."""
        episode, t = divmod(seen.steps, self.horizon)
        mean, precision = self.prior.rewards(seen.visits, seen.totals)
        rewards, later = self.bonus(Belief(mean, precision, seen.visits, seen.weight, episode))
        inverse = seen.weight.reciprocal()
        shape = (len(mean), self.prior.num_states, self.prior.num_actions)

        def backup(value: Tensor, to_go: int) -> Tensor:
            paid = rewards if later is None else rewards + to_go * later
            expected = (value.unsqueeze(1) @ seen.weights).squeeze(1)  # [B, S'] -> [B, S × A], times weight
            return torch.addcmul(paid, expected, inverse).view(shape)

        value = mean.new_zeros(shape[:2])
        for to_go in range(self.horizon - 1 - t):
            value = backup(value, to_go).amax(dim=2)
        rows = torch.arange(len(mean), device=mean.device)
        return backup(value, self.horizon - 1 - t)[rows, seen.state]


_BONUSES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)


def replanning_references(prior: Prior, horizon: int, num_episodes: int) -> dict[str, Reference]:
    """Return the references that plan at every step by name.

    Args:
        prior: the law of the tasks.
        horizon: H.
        num_episodes: n, episodes in a trial; the fading bonus ends with them.
    """

    def agent(bonus: Bonus) -> ReplanningAgent:
        return ReplanningAgent(prior, horizon, bonus)

    def build_beb(scaling: float = 5e-4) -> ReplanningAgent:  # tunable
        require(0 <= scaling < inf, f"scaling >= 0, got {scaling}")
        return agent(partial(beb_bonus, horizon=horizon, scaling=scaling))

    def build_bonus(bonus: float = 0.5) -> ReplanningAgent:  # tunable
        require(0 <= bonus < inf, f"bonus >= 0, got {bonus}")
        return agent(partial(visit_bonus, bonus=bonus))

    def build_fading(bonus: float = 1.0) -> ReplanningAgent:  # tunable
        require(0 <= bonus < inf, f"bonus >= 0, got {bonus}")
        return agent(partial(fading_bonus, bonus=bonus, num_episodes=num_episodes))

    return {
        "greedy_step": Reference("greedy, but planned anew at every step", lambda: agent(no_bonus)),
        "beb_step": Reference("beb, but planned anew at every step", build_beb, {"scaling": SCALINGS}),
        "bonus_step": Reference(
            "greedy_step, with a bonus of b / (1 + visits of a pair)", build_bonus, {"bonus": _BONUSES}
        ),
        "fading_bonus_step": Reference(
            "bonus_step, with a bonus in proportion to the episodes left", build_fading, {"bonus": _BONUSES}
        ),
    }
