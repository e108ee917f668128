"""Bandit algorithms with known behaviour, as agents: references for RL² and MAML.

Each of them pulls the arm with the highest score, and the first of equal arms, as in the papers. They differ
only in the rule that scores the arms. Every rule uses the same data: pulls and rewards of each arm.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rl2meta.agents.references.gittins import gittins_index, gittins_indices
from rl2meta.agents.references.priors import (
    BetaPrior,
    NormalPrior,
    Prior,
    Statistics,
    TruncatedBetaPrior,
    refuse_longer_trials,
)
from rl2meta.agents.references.reference import KNOWS_NOTHING, Reference, require
from rl2meta.beliefs import Amounts, Belief, Told
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory

Rule = Callable[[Statistics], Tensor]
"""Scores the arms, float [B, k]; the agent pulls the arm with the highest score."""


def nothing(seen: Statistics) -> Told:
    """Tell nothing."""
    return {}


def posterior(seen: Statistics, prior: Prior) -> dict[str, Belief]:
    """Tell the posterior of each arm's mean."""
    return {"posterior of each arm's mean": prior.posterior(seen)}


def posterior_and_score(seen: Statistics, prior: Prior, rule: Rule, score: str) -> Told:
    """Tell the posterior, and the score by which a rule without random draws chooses."""
    return {**posterior(seen, prior), score: Amounts(rule(seen))}


@dataclass(frozen=True)
class IndexAgent:
    """Pulls the arm that ``rule`` scores highest, and the first of equal arms.

    Attributes:
        num_arms: k.
        rule: scores the arms; may draw from the carry's generator.
        best: scores the arms for ``Choice.mode``; None if ``rule`` has no exploration noise.
        tell: what the agent believes, to be shown.
    """

    num_arms: int
    rule: Rule
    best: Rule | None = None
    tell: Callable[[Statistics], Told] = nothing
    phase: Phase = field(default=Phase(episodes=1), init=False)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Statistics:
        """Return the statistics of bandits without pulls."""
        nothing = torch.zeros(num_tasks, self.num_arms, device=generator.device)
        return Statistics(nothing, nothing, 0, generator)

    def act(self, carry: Statistics, step: TimeStep) -> tuple[Choice, Statistics]:
        """Pull the arm with the highest score."""
        action = self.rule(carry).argmax(dim=1)
        mode = action if self.best is None else self.best(carry).argmax(dim=1)
        return Choice(action, mode), carry

    def act_and_tell(self, carry: Statistics, step: TimeStep) -> tuple[Choice, Statistics, Told]:
        """Do what ``act`` does, and tell what the agent believes."""
        return *self.act(carry, step), self.tell(carry)

    def adapt(self, carry: Statistics, trajectory: Trajectory) -> Statistics:
        """Count the pulls and add up the rewards of [T, B] steps, without padding."""
        arm, seen = trajectory.action.T, trajectory.mask.T.to(carry.pulls.dtype)  # [B, T]
        return carry._replace(
            pulls=carry.pulls.scatter_add(1, arm, seen),
            totals=carry.totals.scatter_add(1, arm, seen * trajectory.reward.T),
            steps=carry.steps + len(trajectory.action),
        )


def uniform(seen: Statistics) -> Tensor:
    """Score at random, so that the agent pulls every arm with equal probability."""
    return torch.rand(seen.pulls.shape, generator=seen.generator, device=seen.pulls.device)


def epsilon_greedy(seen: Statistics, prior: Prior, epsilon: float) -> Tensor:
    """Score by the posterior mean; with probability ε, in each bandit and round, score at random."""
    chance = torch.rand(len(seen.pulls), 1, generator=seen.generator, device=seen.pulls.device)
    return torch.where(chance < epsilon, uniform(seen), prior.mean(seen))


def ucb1(seen: Statistics, prior: Prior, c: float) -> Tensor:
    """Score by the upper confidence bound, meanᵢ + c √(2 ln t / Tᵢ).

    The mean is that of the posterior, Tᵢ includes the prior's pseudo-pulls, and t = 1 in the first round.

    Source: Auer et al. 2002, with the pseudo-pulls and the tuned c of Duan et al. 2016.
    """
    t = seen.pulls.sum(dim=1, keepdim=True) + 1
    return prior.mean(seen) + c * (2 * t.log() / prior.weight(seen)).sqrt()


def thompson(seen: Statistics, prior: Prior) -> Tensor:
    """Score by one draw from the posterior (Thompson 1933)."""
    return prior.sample(seen, 1)[0]


def optimistic_thompson(seen: Statistics, prior: Prior, samples: int) -> Tensor:
    """OTS: draw the means of all arms N times from the posterior; score by the draw of highest joint density.

    With N = 1 this is Thompson's rule; with more draws it comes closer to the posterior's mode.

    Source: Duan et al. 2016 (arXiv 1611.02779), the authors' code.
    """
    draws = prior.sample(seen, samples)  # [N, B, k]
    likeliest = prior.log_density(seen, draws).sum(dim=2).argmax(dim=0)  # [B]
    return draws[likeliest, torch.arange(len(likeliest), device=likeliest.device)]


def gittins(seen: Statistics, num_pulls: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Score by the Gittins index for the rest of ``num_pulls`` pulls of Bernoulli arms, pᵢ ~ U[low, high].

    Raises:
        ValueError: if the trial has more than ``num_pulls`` pulls.
    """
    refuse_longer_trials(seen, num_pulls)
    successes, pulls = seen.totals.long(), seen.pulls.long()
    remaining = num_pulls - pulls.sum(dim=1, keepdim=True)
    return gittins_index(num_pulls, successes, pulls - successes, remaining, low, high)


_TENTHS = tuple(i / 10 for i in range(11))
_SAMPLES = (1, 2, 3, 5, 10, 20)  # of the paper's 1 … 20


def bernoulli_references(
    num_arms: int, num_pulls: int, low: float = 0.0, high: float = 1.0
) -> dict[str, Reference]:
    """Return the references of Bernoulli arms with pᵢ ~ U[low, high], by name.

    Args:
        num_arms: k.
        num_pulls: n, pulls in a trial; on [0, 1] only the Gittins index depends on it.
        low: lower bound of the arms' means.
        high: upper bound of the arms' means.

    Source: Duan et al. 2016 (arXiv 1611.02779), table 1: rules, pseudo-counts and grids.
    """
    prior = BetaPrior() if (low, high) == (0, 1) else TruncatedBetaPrior(num_pulls, low, high)

    def build() -> IndexAgent:
        gittins_indices(
            num_pulls, low, high
        )  # solved here, so that the first step of a rollout is not delayed
        rule = partial(gittins, num_pulls=num_pulls, low=low, high=high)
        tell = partial(posterior_and_score, prior=prior, rule=rule, score="Gittins index")
        return IndexAgent(num_arms, rule, tell=tell)

    index = Reference("the highest finite-horizon Gittins index: near-optimal", build)
    return {**_references(num_arms, prior), "gittins": index}


def gaussian_references(num_arms: int, num_pulls: int, mean: float = 0.0) -> dict[str, Reference]:
    """Return the references of arms that pay N(μᵢ, 1) with μᵢ ~ N(mean, 1), by name.

    None of them depends on ``num_pulls``.
    """
    return _references(num_arms, NormalPrior(mean))


def _references(num_arms: int, prior: Prior) -> dict[str, Reference]:
    believed, silent = partial(posterior, prior=prior), IndexAgent(num_arms, uniform, prior.mean)

    def agent(rule: Rule, best: Rule | None = prior.mean) -> IndexAgent:
        return IndexAgent(num_arms, rule, best, believed)

    def build_epsilon_greedy(epsilon: float = 0.1) -> IndexAgent:  # tunable
        require(0 <= epsilon <= 1, f"epsilon in [0, 1], got {epsilon}")
        return agent(partial(epsilon_greedy, prior=prior, epsilon=epsilon))

    def build_ucb1(c: float = 0.2) -> IndexAgent:  # tunable
        require(c >= 0, f"c >= 0, got {c}")
        rule = partial(ucb1, prior=prior, c=c)
        tell = partial(posterior_and_score, prior=prior, rule=rule, score="upper confidence bound")
        return IndexAgent(num_arms, rule, tell=tell)

    def build_ots(samples: int = 10) -> IndexAgent:  # tunable
        require(samples >= 1, f"samples >= 1, got {samples}")
        return agent(partial(optimistic_thompson, prior=prior, samples=samples))

    return {
        "random": Reference("any arm", lambda: silent, prior=KNOWS_NOTHING),
        "greedy": Reference("the highest posterior mean", lambda: agent(prior.mean, best=None)),
        "epsilon_greedy": Reference(
            "greedy, but any arm with probability epsilon", build_epsilon_greedy, {"epsilon": _TENTHS}
        ),
        "ucb1": Reference("the highest upper confidence bound", build_ucb1, {"c": _TENTHS}),
        "thompson": Reference(
            "the best arm of one posterior sample", lambda: agent(partial(thompson, prior=prior))
        ),
        "ots": Reference(
            "the best arm of the most likely of several posterior samples", build_ots, {"samples": _SAMPLES}
        ),
    }
