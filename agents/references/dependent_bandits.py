"""References for two-armed bandits with p₂ = 1 − p₁; some use this dependence, others do not."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from rl2meta.agents.references.bandits import IndexAgent, Rule, bernoulli_references
from rl2meta.agents.references.priors import BetaPrior, Statistics
from rl2meta.agents.references.reference import Reference, require
from rl2meta.beliefs import Probabilities, Told


class JointPrior(Protocol):
    """A prior of p₁, with p₂ = 1 − p₁."""

    def mean(self, seen: Statistics) -> Tensor:
        """Return the posterior mean of p₁, [B, 1]."""
        ...

    def sample(self, seen: Statistics) -> Tensor:
        """Draw p₁ from the posterior, [B, 1]."""
        ...

    def tell(self, seen: Statistics) -> Told:
        """Return the posterior, to be shown."""
        ...


@dataclass(frozen=True)
class UniformPrior:
    """p₁ ~ U[0, 1]; after k signs for arm 1 in t pulls, the posterior is Beta(k + 1, t − k + 1)."""

    def mean(self, seen: Statistics) -> Tensor:
        """Return (k + 1) / (t + 2)."""
        return BetaPrior().mean(_pooled(seen))

    def sample(self, seen: Statistics) -> Tensor:
        """Draw from the posterior."""
        return BetaPrior().sample(_pooled(seen), 1)[0]

    def tell(self, seen: Statistics) -> Told:
        """Tell the posterior of p₁."""
        return {"posterior of the first arm's mean": BetaPrior().posterior(_pooled(seen))._replace(of="p₁")}


@dataclass(frozen=True)
class TwoPointPrior:
    """p₁ is ``better`` or 1 − ``better`` with equal probability.

    After k signs for arm 1 in t pulls, P(p₁ = better) = σ((2k − t) ln(better / (1 − better))).
    """

    better: float

    def mean(self, seen: Statistics) -> Tensor:
        """Return P · better + (1 − P)(1 − better)."""
        return 0.5 + (self.better - 0.5) * (0.5 * self._log_odds(seen)).tanh()

    def sample(self, seen: Statistics) -> Tensor:
        """Draw one of the two values."""
        log_odds = self._log_odds(seen)
        chance = torch.rand(log_odds.shape, generator=seen.generator, device=log_odds.device)
        return torch.where(chance < log_odds.sigmoid(), self.better, 1 - self.better)

    def tell(self, seen: Statistics) -> Told:
        """Tell the probability of each arm to be the better one."""
        first = self._log_odds(seen).sigmoid()  # [B, 1]
        return {"which arm is the better one": Probabilities(torch.cat([first, 1 - first], dim=1))}

    def _log_odds(self, seen: Statistics) -> Tensor:
        pooled = _pooled(seen)
        return (2 * pooled.totals - pooled.pulls) * math.log(self.better / (1 - self.better))


def greedy(seen: Statistics, prior: JointPrior) -> Tensor:
    """Score by the posterior mean: Bayes-optimal, because both arms give the same information."""
    return _both(prior.mean(seen))


def thompson(seen: Statistics, prior: JointPrior) -> Tensor:
    """Score by one draw from the joint posterior (Thompson 1933)."""
    return _both(prior.sample(seen))


def dependent_references(better: float | None, num_pulls: int) -> dict[str, Reference]:
    """Return the references of two arms with p₂ = 1 − p₁, by name.

    ``ucb1`` and ``*_independent`` treat the arms as independent.

    Args:
        better: p₁ is ``better`` or 1 − ``better``, with equal probability; None for p₁ ~ U[0, 1].
        num_pulls: n, pulls in a trial; only the Gittins index depends on it.

    Raises:
        ValueError: for ``better`` outside (1/2, 1).

    Source: Wang et al. 2016 (arXiv 1611.05763), section 3.1, compare with UCB, Thompson sampling and the
    Gittins index for independent arms.
    """
    require(better is None or 0.5 < better < 1, f"better in (1/2, 1), or None, got {better}")
    prior: JointPrior = UniformPrior() if better is None else TwoPointPrior(better)
    independent = bernoulli_references(2, num_pulls)
    best = partial(greedy, prior=prior)

    def kept(name: str) -> Reference:
        description = f"{independent[name].description}, arms independent"
        return replace(independent[name], description=description, prior="takes the arms for independent")

    return {
        "random": independent["random"],
        "greedy": Reference("the higher posterior mean: Bayes-optimal", _agent(prior, best)),
        "thompson": Reference(
            "the better arm of a posterior sample", _agent(prior, partial(thompson, prior=prior), best)
        ),
        "ucb1": kept("ucb1"),
        "thompson_independent": kept("thompson"),
        "gittins_independent": kept("gittins"),
    }


def _agent(prior: JointPrior, rule: Rule, best: Rule | None = None) -> Callable[[], IndexAgent]:
    return lambda: IndexAgent(2, rule, best, prior.tell)


def _pooled(seen: Statistics) -> Statistics:
    """Return statistics of arm 1, [B, 1], that count every pull of both arms as a pull of arm 1.

    A failure of arm 2 counts as a success of arm 1, because it has the same probability, 1 − p₂ = p₁.
    """
    signs = seen.totals[:, 0] + seen.pulls[:, 1] - seen.totals[:, 1]
    return seen._replace(pulls=seen.pulls.sum(dim=1, keepdim=True), totals=signs.unsqueeze(1))


def _both(first: Tensor) -> Tensor:
    """Return p₁ and p₂, [B, 2], from p₁ [B, 1]."""
    return torch.cat([first, 1 - first], dim=1)
