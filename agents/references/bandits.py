"""Bandit algorithms with known behaviour, as agents: what RL² and MAML are measured against.

Every one of them pulls the arm of the highest score, the first of equals as in the papers, and they differ
only in the rule that scores the arms. What a rule knows is the same for all: pulls and rewards of each arm.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rl2meta.agents.references.gittins import gittins_index, gittins_indices
from rl2meta.agents.references.reference import Reference, require
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory


class Statistics(NamedTuple):
    """The carry: what has been seen of B bandits with k arms.

    Attributes:
        pulls: Nᵢ, float [B, k].
        totals: the sum of each arm's rewards, float [B, k].
        steps: t, pulls so far in each bandit, known without asking the device.
        generator: of the rules' draws.
    """

    pulls: Tensor
    totals: Tensor
    steps: int
    generator: torch.Generator


Rule = Callable[[Statistics], Tensor]
"""Scores the arms, float [B, k]; the agent pulls the arm of the highest."""


@dataclass(frozen=True)
class IndexAgent:
    """Pulls the arm that ``rule`` scores highest, the first of equals.

    Attributes:
        num_arms: k.
        rule: scores the arms; may draw from the carry's generator.
        best: scores the arms for ``Choice.mode``; None if ``rule`` has no exploration noise to leave out.
    """

    num_arms: int
    rule: Rule
    best: Rule | None = None
    phase: Phase = field(default=Phase(episodes=1), init=False)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Statistics:
        """Return the statistics of bandits that nobody has pulled yet."""
        nothing = torch.zeros(num_tasks, self.num_arms, device=generator.device)
        return Statistics(nothing, nothing, 0, generator)

    def act(self, carry: Statistics, step: TimeStep) -> tuple[Choice, Statistics]:
        """Pull the best arm by the rule."""
        action = self.rule(carry).argmax(dim=1)
        mode = action if self.best is None else self.best(carry).argmax(dim=1)
        return Choice(action, mode), carry

    def adapt(self, carry: Statistics, trajectory: Trajectory) -> Statistics:
        """Count the pulls and add up the rewards of [T, B] steps, those on padding left out."""
        arm, seen = trajectory.action.T, trajectory.mask.T.to(carry.pulls.dtype)  # [B, T]
        return carry._replace(
            pulls=carry.pulls.scatter_add(1, arm, seen),
            totals=carry.totals.scatter_add(1, arm, seen * trajectory.reward.T),
            steps=carry.steps + len(trajectory.action),
        )


class Prior(Protocol):
    """What is believed of an arm before it is pulled, and so after it was."""

    def weight(self, seen: Statistics) -> Tensor:
        """Return the pulls, those counted in that the prior is worth, [B, k]."""
        ...

    def mean(self, seen: Statistics) -> Tensor:
        """Return the posterior mean of each arm's mean, [B, k]."""
        ...

    def sample(self, seen: Statistics, num_samples: int) -> Tensor:
        """Draw the arms' means from the posterior, [num_samples, B, k]."""
        ...

    def log_density(self, seen: Statistics, means: Tensor) -> Tensor:
        """Return the posterior's log-density, up to a constant in each arm, in the shape of ``means``."""
        ...


@dataclass(frozen=True)
class BetaPrior:
    """Beta(1, 1) for Bernoulli arms: after s successes in N pulls, Beta(s + 1, N − s + 1)."""

    def weight(self, seen: Statistics) -> Tensor:
        """Return N + 2: one success and one failure come before the first pull."""
        return seen.pulls + 2

    def mean(self, seen: Statistics) -> Tensor:
        """Return (s + 1) / (N + 2)."""
        return (seen.totals + 1) / (seen.pulls + 2)

    def sample(self, seen: Statistics, num_samples: int) -> Tensor:
        """Draw X / (X + Y) of two Gamma variables; torch's own Beta would take no generator."""
        success, failure = (
            torch._standard_gamma(count.expand(num_samples, *count.shape), generator=seen.generator)
            for count in (seen.totals + 1, seen.pulls - seen.totals + 1)
        )
        return success / (success + failure)

    def log_density(self, seen: Statistics, means: Tensor) -> Tensor:
        """Return s ln p + (N − s) ln(1 − p), where 0 ln 0 = 0."""
        failures = seen.pulls - seen.totals
        log_density: Tensor = torch.xlogy(seen.totals, means) + torch.special.xlog1py(failures, -means)
        return log_density


@dataclass(frozen=True)
class NormalPrior:
    """N(m, 1) for arms with noise of variance 1: after rewards of sum R in N pulls, N((R+m)/(N+1), 1/(N+1)).

    Attributes:
        prior_mean: m.
    """

    prior_mean: float = 0.0

    def weight(self, seen: Statistics) -> Tensor:
        """Return N + 1: the prior is worth one pull that paid m."""
        return seen.pulls + 1

    def mean(self, seen: Statistics) -> Tensor:
        """Return (R + m) / (N + 1)."""
        return (seen.totals + self.prior_mean) / (seen.pulls + 1)

    def sample(self, seen: Statistics, num_samples: int) -> Tensor:
        """Draw from the posterior."""
        shape = (num_samples, *seen.pulls.shape)
        noise = torch.randn(shape, generator=seen.generator, device=seen.pulls.device)
        return self.mean(seen) + noise * self.weight(seen).rsqrt()

    def log_density(self, seen: Statistics, means: Tensor) -> Tensor:
        """Return −(N + 1) (μ − mean)² / 2."""
        return -0.5 * self.weight(seen) * (means - self.mean(seen)).square()


def uniform(seen: Statistics) -> Tensor:
    """Score at random, so that every arm is equally likely to be pulled."""
    return torch.rand(seen.pulls.shape, generator=seen.generator, device=seen.pulls.device)


def epsilon_greedy(seen: Statistics, prior: Prior, epsilon: float) -> Tensor:
    """Score by the posterior mean, but with probability ε in each bandit and round at random."""
    chance = torch.rand(len(seen.pulls), 1, generator=seen.generator, device=seen.pulls.device)
    return torch.where(chance < epsilon, uniform(seen), prior.mean(seen))


def ucb1(seen: Statistics, prior: Prior, c: float) -> Tensor:
    """Score by the upper confidence bound, meanᵢ + c √(2 ln t / Tᵢ).

    The mean is the posterior's, Tᵢ counts the prior's pseudo-pulls in, and t = 1 in the first round.

    Source: Auer et al. 2002, with the pseudo-pulls and the tuned c of Duan et al. 2016.
    """
    t = seen.pulls.sum(dim=1, keepdim=True) + 1
    return prior.mean(seen) + c * (2 * t.log() / prior.weight(seen)).sqrt()


def thompson(seen: Statistics, prior: Prior) -> Tensor:
    """Score by one draw from the posterior (Thompson 1933)."""
    return prior.sample(seen, 1)[0]


def optimistic_thompson(seen: Statistics, prior: Prior, samples: int) -> Tensor:
    """OTS: of N draws of all arms' means from the posterior, score by that of the highest joint density.

    With N = 1 it is Thompson's rule; the more draws, the nearer to the posterior's mode.

    Source: Duan et al. 2016 (arXiv 1611.02779), the authors' code.
    """
    draws = prior.sample(seen, samples)  # [N, B, k]
    likeliest = prior.log_density(seen, draws).sum(dim=2).argmax(dim=0)  # [B]
    return draws[likeliest, torch.arange(len(likeliest), device=likeliest.device)]


def gittins(seen: Statistics, num_pulls: int) -> Tensor:
    """Score by the Gittins index for the rest of ``num_pulls`` pulls, arms being Bernoulli with Beta(1, 1).

    Raises:
        ValueError: in a longer trial.
    """
    if seen.steps >= num_pulls:
        raise ValueError(
            f"expected a trial of num_pulls={num_pulls} pulls at most, got pull {seen.steps + 1}; "
            "build the reference for the trial's length"
        )
    successes, pulls = seen.totals.long(), seen.pulls.long()
    remaining = num_pulls - pulls.sum(dim=1, keepdim=True)
    return gittins_index(num_pulls, successes, pulls - successes, remaining)


_TENTHS = tuple(i / 10 for i in range(11))
_SAMPLES = (1, 2, 3, 5, 10, 20)  # of the paper's 1 … 20


def bernoulli_references(num_arms: int, num_pulls: int, uniform_prior: bool = True) -> dict[str, Reference]:
    """Return the references of ``BernoulliBandits`` by name.

    All of them believe that the arms' means are uniform on [0, 1].

    Args:
        num_arms: k.
        num_pulls: n, pulls in a trial; only the Gittins index depends on it.
        uniform_prior: whether they are right; if not, their descriptions say what they believe.

    Source: Duan et al. 2016 (arXiv 1611.02779), table 1: rules, pseudo-counts and grids.
    """

    def build() -> IndexAgent:
        gittins_indices(num_pulls)  # solved here, so that the first act of a rollout does not stall
        return IndexAgent(num_arms, partial(gittins, num_pulls=num_pulls))

    best = "the highest finite-horizon Gittins index"
    index = Reference(f"{best}: near-optimal" if uniform_prior else best, build)
    references = {**_references(num_arms, BetaPrior()), "gittins": index}
    if uniform_prior:
        return references
    return {
        name: replace(reference, description=f"{reference.description}; prior U[0, 1]")
        for name, reference in references.items()
    }


def gaussian_references(num_arms: int, num_pulls: int, mean: float = 0.0) -> dict[str, Reference]:
    """Return the references of ``GaussianBandits`` whose arms' means are N(mean, 1), by name.

    None of them depends on ``num_pulls``.
    """
    return _references(num_arms, NormalPrior(mean))


def _references(num_arms: int, prior: Prior) -> dict[str, Reference]:
    def agent(rule: Rule, best: Rule | None = prior.mean) -> IndexAgent:
        return IndexAgent(num_arms, rule, best)

    def build_epsilon_greedy(epsilon: float = 0.1) -> IndexAgent:  # tunable
        require(0 <= epsilon <= 1, f"epsilon in [0, 1], got {epsilon}")
        return agent(partial(epsilon_greedy, prior=prior, epsilon=epsilon))

    def build_ucb1(c: float = 0.2) -> IndexAgent:  # tunable
        require(c >= 0, f"c >= 0, got {c}")
        return agent(partial(ucb1, prior=prior, c=c), best=None)

    def build_ots(samples: int = 10) -> IndexAgent:  # tunable
        require(samples >= 1, f"samples >= 1, got {samples}")
        return agent(partial(optimistic_thompson, prior=prior, samples=samples))

    return {
        "random": Reference("any arm", lambda: agent(uniform)),
        "greedy": Reference("the highest posterior mean", lambda: agent(prior.mean, best=None)),
        "epsilon_greedy": Reference(
            "greedy, but at times any arm", build_epsilon_greedy, {"epsilon": _TENTHS}
        ),
        "ucb1": Reference("the highest upper confidence bound", build_ucb1, {"c": _TENTHS}),
        "thompson": Reference(
            "the best arm of one posterior sample", lambda: agent(partial(thompson, prior=prior))
        ),
        "ots": Reference(
            "the best arm of the likeliest of some posterior samples", build_ots, {"samples": _SAMPLES}
        ),
    }
