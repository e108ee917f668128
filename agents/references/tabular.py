"""Exploration algorithms for small MDPs with known behaviour, as agents: references for RL² and MAML.

Each of them has a posterior of the MDP, makes a plan for each episode from it, and takes the best action of
the plan. They differ only in the planner (``planning.py``) and in the prior.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.agents.references.planning import (
    Planner,
    Posterior,
    beb,
    greedy,
    indifferent,
    opsrl,
    psrl,
    ucrl2,
)
from rl2meta.agents.references.reference import KNOWS_LAW, KNOWS_NOTHING, Reference, require
from rl2meta.beliefs import Amounts, Belief, Normals, Told
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory

_SMALLEST_VARIANCE = 1e-12  # so that a standard deviation of 0 has a finite precision
_ROUNDING = 1e-6  # relative difference between sums of the same numbers in a different order


class Counts(NamedTuple):
    """Counts and sums of the steps in B MDPs.

    Attributes:
        visits: number of visits of (s, a), float [B, S, A].
        totals: sum of the rewards of (s, a), [B, S, A].
        transitions: number of transitions from (s, a) to s', float [B, S, A, S].
    """

    visits: Tensor
    totals: Tensor
    transitions: Tensor

    def after(self, trajectory: Trajectory) -> "Counts":
        """Return the counts after [T, B] more steps, without padding.

        At the end of an episode or of the trajectory, the next state is unknown, so no transition counts.
        """
        num_states, num_actions = self.visits.shape[1:]
        state, mask = trajectory.inputs.observation.long(), trajectory.mask
        pair = state * num_actions + trajectory.action.long()
        followed = mask[:-1] & mask[1:] & ~trajectory.last[:-1]
        return Counts(
            _add(self.visits, pair, mask.float()),
            _add(self.totals, pair, mask * trajectory.reward),
            _add(self.transitions, pair[:-1] * num_states + state[1:], followed.float()),
        )


@dataclass(frozen=True)
class Prior:
    """μ(s, a) ~ N(m, 1/τ), rewards with noise of precision τ', and P(· | s, a) ~ Dirichlet(α, …, α).

    Attributes:
        num_states: S.
        num_actions: A.
        mean: m.
        precision: τ.
        noise_precision: τ'.
        concentration: α.
    """

    num_states: int
    num_actions: int
    mean: float
    precision: float
    noise_precision: float
    concentration: float

    def posterior(self, counts: Counts, episode: int, generator: torch.Generator) -> Posterior:
        """Return N((τ m + τ' R) / (τ + τ' n), 1 / (τ + τ' n)) after n rewards with sum R, and α + counts."""
        mean, precision = self.rewards(counts.visits, counts.totals)
        weights = self.concentration + counts.transitions
        return Posterior(mean, precision, weights, self.concentration, episode, generator)

    def rewards(self, visits: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and precision of the posterior of μ(s, a), in the shape of ``visits``."""
        precision = self.precision + self.noise_precision * visits
        return (self.precision * self.mean + self.noise_precision * totals) / precision, precision


class Experience(NamedTuple):
    """The carry: counts of past steps, and the plan for the current episode.

    Attributes:
        counts: counts and sums of past steps.
        plan: Q_t(s, a) of the current episode, [B, H, S, A].
        step: t, number of steps so far in the current episode; a Python number, so it needs no device.
        episode: number of completed episodes.
        generator: random stream of the agent.
    """

    counts: Counts
    plan: Tensor
    step: int
    episode: int
    generator: torch.Generator


@dataclass(frozen=True)
class TabularAgent:
    """Plans each episode from its posterior, and takes the best action of the plan; ties are random.

    Ties are common, because pairs (s, a) that were never tried have equal values. If the agent always took
    the first of equal actions, it would repeat the same action in a state, and learn less in an episode.

    Attributes:
        prior: of the MDP.
        horizon: H, the steps in an episode.
        planner: makes the plan.
        epsilon: at each step, the probability of a uniform action instead.
    """

    prior: Prior
    horizon: int
    planner: Planner
    epsilon: float = 0.0
    phase: Phase = field(default=Phase(episodes=1), init=False)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Experience:
        """Return the plan for the first episode, from the prior alone."""
        shape = (num_tasks, self.prior.num_states, self.prior.num_actions)
        nothing = torch.zeros(shape, device=generator.device)
        nowhere = torch.zeros((*shape, self.prior.num_states), device=generator.device)
        return self._planned(Counts(nothing, nothing, nowhere), 0, generator)

    def act(self, carry: Experience, step: TimeStep) -> tuple[Choice, Experience]:
        """Take the plan's best action.

        The mode ignores ε, but not the posterior samples of the plan: a plan holds for the whole episode.
        """
        value = _rows(carry.plan[:, carry.step], step.observation.long())
        mode = any_best(value, carry.generator)
        action = self._explored(mode, carry.generator) if self.epsilon > 0 else mode
        return Choice(action, mode), carry._replace(step=carry.step + 1)

    def act_and_tell(self, carry: Experience, step: TimeStep) -> tuple[Choice, Experience, Told]:
        """Do what ``act`` does; tell the plan and the posterior of the rewards in the present state."""
        told = {} if self.planner is indifferent else self._told(carry, step.observation.long())
        return *self.act(carry, step), told

    def _told(self, carry: Experience, state: Tensor) -> dict[str, Belief]:
        mean, precision = self.prior.rewards(carry.counts.visits, carry.counts.totals)
        return {
            "plan: value of each action here": Amounts(_rows(carry.plan[:, carry.step], state)),
            "posterior of each action's mean reward here": rewards_told(
                _rows(mean, state), _rows(precision, state)
            ),
        }

    def adapt(self, carry: Experience, trajectory: Trajectory) -> Experience:
        """Learn from the last episode and plan the next one."""
        return self._planned(carry.counts.after(trajectory), carry.episode + 1, carry.generator)

    def _planned(self, counts: Counts, episode: int, generator: torch.Generator) -> Experience:
        posterior = self.prior.posterior(counts, episode, generator)
        return Experience(counts, self.planner(posterior, self.horizon), 0, episode, generator)

    def _explored(self, mode: Tensor, generator: torch.Generator) -> Tensor:
        chance = torch.rand(mode.shape, generator=generator, device=mode.device)
        anything = torch.randint(self.prior.num_actions, mode.shape, generator=generator, device=mode.device)
        return torch.where(chance < self.epsilon, anything, mode)


_EPSILONS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)
_SAMPLES = (1, 2, 3, 5, 10, 20)
SCALINGS = tuple(float(f"{10 ** (i / 5 - 4):.3g}") for i in range(21))
"""Candidates for the scaling of bonuses and confidence bounds, 10⁻⁴ … 1."""


def tabular_references(
    num_states: int,
    num_actions: int,
    horizon: int,
    *,
    reward_mean: float = 1.0,
    reward_deviation: float = 1.0,
    noise: float = 1.0,
    concentration: float = 1.0,
) -> dict[str, Reference]:
    """Return the references of ``TabularMDPs`` that plan once per episode, by name.

    The Bayesian ones know the task distribution. The published baselines assumed a prior mean of 0 for the
    mean rewards; if m is not 0, the references ``…_mean0`` make the same assumption.

    Args:
        num_states: S.
        num_actions: A.
        horizon: H.
        reward_mean: m, the mean of the mean rewards.
        reward_deviation: d, the standard deviation of the mean rewards.
        noise: the standard deviation of a reward around its mean.
        concentration: α of the transitions.

    Source: Duan et al. 2016 (arXiv 1611.02779), table 2.
    """
    prior = tabular_prior(
        num_states,
        num_actions,
        reward_mean=reward_mean,
        reward_deviation=reward_deviation,
        noise=noise,
        concentration=concentration,
    )

    def random() -> TabularAgent:
        return TabularAgent(prior, horizon, indifferent, epsilon=1.0)

    references = {
        "random": Reference("any action", random, prior=KNOWS_NOTHING),
        **_bayesian(prior, horizon),
        "ucrl2": _ucrl2(num_states, num_actions, horizon),
    }
    if reward_mean != 0:
        for name, reference in _bayesian(replace(prior, mean=0.0), horizon).items():
            wrong = f"{reference.description}; prior mean 0"
            known = f"{KNOWS_LAW}, but takes its mean reward for 0"
            references[f"{name}_mean0"] = replace(reference, description=wrong, prior=known)
    return references


def tabular_prior(
    num_states: int,
    num_actions: int,
    *,
    reward_mean: float = 1.0,
    reward_deviation: float = 1.0,
    noise: float = 1.0,
    concentration: float = 1.0,
) -> Prior:
    """Return the law of the tasks as a prior; the arguments are those of ``tabular_references``."""
    return Prior(
        num_states,
        num_actions,
        mean=reward_mean,
        precision=1 / max(reward_deviation**2, _SMALLEST_VARIANCE),
        noise_precision=1 / max(noise**2, _SMALLEST_VARIANCE),
        concentration=concentration,
    )


def _bayesian(prior: Prior, horizon: int) -> dict[str, Reference]:
    def agent(planner: Planner, epsilon: float = 0.0) -> TabularAgent:
        return TabularAgent(prior, horizon, planner, epsilon)

    def build_epsilon_greedy(epsilon: float = 0.1) -> TabularAgent:  # tunable
        require(0 <= epsilon <= 1, f"epsilon in [0, 1], got {epsilon}")
        return agent(greedy, epsilon)

    def build_opsrl(samples: int = 10) -> TabularAgent:  # tunable
        require(samples >= 1, f"samples >= 1, got {samples}")
        return agent(partial(opsrl, samples=samples))

    def build_beb(scaling: float = 5e-4) -> TabularAgent:  # tunable
        require(scaling >= 0, f"scaling >= 0, got {scaling}")
        return agent(partial(beb, scaling=scaling))

    return {
        "greedy": Reference("the best plan for the posterior's mean MDP", lambda: agent(greedy)),
        "epsilon_greedy": Reference(
            "greedy, but any action with probability epsilon", build_epsilon_greedy, {"epsilon": _EPSILONS}
        ),
        "psrl": Reference("the best plan for one posterior sample", lambda: agent(psrl)),
        "opsrl": Reference(
            "psrl with the highest value of several posterior samples", build_opsrl, {"samples": _SAMPLES}
        ),
        "beb": Reference("greedy, with bonuses for rarely tried pairs", build_beb, {"scaling": SCALINGS}),
    }


def _ucrl2(num_states: int, num_actions: int, horizon: int) -> Reference:
    """Return UCRL2; its prior has almost no weight and only avoids a division by 0 for untried pairs."""
    prior = Prior(num_states, num_actions, mean=0.0, precision=1e-4, noise_precision=1.0, concentration=1e-5)

    def build(scaling: float = 0.4) -> TabularAgent:  # tunable
        require(scaling >= 0, f"scaling >= 0, got {scaling}")
        return TabularAgent(prior, horizon, partial(ucrl2, scaling=scaling))

    return Reference("the best plan within confidence bounds", build, {"scaling": SCALINGS}, KNOWS_NOTHING)


def _add(counts: Tensor, index: Tensor, amount: Tensor) -> Tensor:
    """Add ``amount`` [T, B] at ``index`` [T, B] of each flattened row of ``counts`` [B, ...]."""
    return counts.flatten(1).scatter_add(1, index.T, amount.T).view(counts.shape)


def rewards_told(mean: Tensor, precision: Tensor) -> Normals:
    """Return the posterior of the mean rewards of some actions, from its mean and precision [B, A]."""
    return Normals(mean, precision.rsqrt())


def any_best(value: Tensor, generator: torch.Generator) -> Tensor:
    """Return the index of a row's maximum; equal maxima have the same probability, [B, A] -> [B]."""
    best = value.amax(dim=1, keepdim=True)
    equal = value >= best - _ROUNDING * best.abs()
    chance = torch.rand(value.shape, generator=generator, device=value.device)
    return torch.where(equal, chance, -1.0).argmax(dim=1)


def _rows(table: Tensor, state: Tensor) -> Tensor:
    """Return the row of each task's ``state`` [B] in ``table`` [B, S, A], [B, A]."""
    index = state.view(-1, 1, 1).expand(-1, 1, table.shape[-1])  # [B, 1, A]
    return table.gather(1, index).squeeze(1)
