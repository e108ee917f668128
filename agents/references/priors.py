"""Priors of a bandit's arms, and the posteriors that follow from them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rl2meta.agents.references.truncated_beta import sample_truncated_beta
from rl2meta.beliefs import Betas, Normals
from rl2meta.predictions import predictive_means


class Statistics(NamedTuple):
    """The carry: pulls and rewards of B bandits with k arms.

    Attributes:
        pulls: number of pulls of each arm, Nᵢ, float [B, k].
        totals: sum of the rewards of each arm, float [B, k].
        steps: t, number of pulls so far in each bandit; a Python number, so reading it needs no device.
        generator: random stream of the rules.
    """

    pulls: Tensor
    totals: Tensor
    steps: int
    generator: torch.Generator


class Prior(Protocol):
    """A prior of the arms' means, and the posterior that follows from the statistics."""

    def weight(self, seen: Statistics) -> Tensor:
        """Return the number of pulls, including the pseudo-pulls of the prior, [B, k]."""
        ...

    def mean(self, seen: Statistics) -> Tensor:
        """Return the posterior mean of each arm's mean, [B, k]."""
        ...

    def sample(self, seen: Statistics, num_samples: int) -> Tensor:
        """Draw the arms' means from the posterior, [num_samples, B, k]."""
        ...

    def log_density(self, seen: Statistics, means: Tensor) -> Tensor:
        """Return the posterior's log-density, up to a constant for each arm, in the shape of ``means``."""
        ...

    def posterior(self, seen: Statistics) -> Betas | Normals:
        """Return the posterior of each arm's mean, to be shown."""
        ...


@dataclass(frozen=True)
class BetaPrior:
    """Beta(1, 1) for Bernoulli arms, with the posterior Beta(s + 1, N − s + 1) for s successes in N pulls."""

    def weight(self, seen: Statistics) -> Tensor:
        """Return N + 2: the prior counts as one success and one failure."""
        return seen.pulls + 2

    def mean(self, seen: Statistics) -> Tensor:
        """Return (s + 1) / (N + 2)."""
        return (seen.totals + 1) / (seen.pulls + 2)

    def sample(self, seen: Statistics, num_samples: int) -> Tensor:
        """Draw X / (X + Y) from two Gamma variables; torch's Beta accepts no generator."""
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

    def posterior(self, seen: Statistics) -> Betas:
        """Return Beta(s + 1, N − s + 1)."""
        return Betas(seen.totals + 1, seen.pulls - seen.totals + 1)


@dataclass(frozen=True)
class TruncatedBetaPrior:
    """U[low, high] for Bernoulli arms; after s successes in N pulls, Beta(s + 1, N − s + 1) on [low, high].

    Attributes:
        num_pulls: n, number of pulls in a trial; the posterior means are tabulated for it.
        low: lower bound of the arms' means.
        high: upper bound of the arms' means.
    """

    num_pulls: int
    low: float
    high: float

    def weight(self, seen: Statistics) -> Tensor:
        """Return N + m (1 − m) / v − 1, where m and v are the prior's mean and variance.

        A Beta distribution with this mean and variance counts as so many pulls; Beta(1, 1) counts as 2.
        """
        mean, variance = (self.low + self.high) / 2, (self.high - self.low) ** 2 / 12
        return seen.pulls + (mean * (1 - mean) / variance - 1)

    def mean(self, seen: Statistics) -> Tensor:
        """Return ∫ p^(s + 1) (1 − p)^(N − s) dp / ∫ p^s (1 − p)^(N − s) dp, exactly.

        Raises:
            ValueError: if the trial has more than ``num_pulls`` pulls.
        """
        refuse_longer_trials(seen, self.num_pulls)
        pulls = seen.pulls.long()
        table = _means_on_device(self.num_pulls, self.low, self.high, pulls.device)
        return table[pulls * (pulls + 1) // 2 + seen.totals.long()]

    def sample(self, seen: Statistics, num_samples: int) -> Tensor:
        """Draw from the posterior."""
        failures = seen.pulls - seen.totals
        return sample_truncated_beta(seen.totals, failures, self.low, self.high, num_samples, seen.generator)

    def log_density(self, seen: Statistics, means: Tensor) -> Tensor:
        """Return s ln p + (N − s) ln(1 − p), where 0 ln 0 = 0."""
        return BetaPrior().log_density(seen, means)

    def posterior(self, seen: Statistics) -> Betas:
        """Return Beta(s + 1, N − s + 1) on [low, high]."""
        return BetaPrior().posterior(seen)._replace(low=self.low, high=self.high)


@dataclass(frozen=True)
class NormalPrior:
    """N(m, 1) for arms with noise of variance 1.

    After N pulls with a sum R of rewards, the posterior is N((R + m) / (N + 1), 1 / (N + 1)).

    Attributes:
        prior_mean: m.
    """

    prior_mean: float = 0.0

    def weight(self, seen: Statistics) -> Tensor:
        """Return N + 1: the prior counts as one pull with the reward m."""
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

    def posterior(self, seen: Statistics) -> Normals:
        """Return N((R + m) / (N + 1), 1 / (N + 1))."""
        return Normals(self.mean(seen), self.weight(seen).rsqrt())


def refuse_longer_trials(seen: Statistics, num_pulls: int) -> None:
    """Raise ValueError if the trial has more than ``num_pulls`` pulls, the length of its table."""
    if seen.steps >= num_pulls:
        raise ValueError(
            f"expected a trial of num_pulls={num_pulls} pulls at most, got pull {seen.steps + 1}; "
            "build the reference for the trial's length"
        )


@lru_cache(maxsize=4)
def _means_on_device(num_pulls: int, low: float, high: float, device: torch.device) -> Tensor:
    # In float64: if the interval is narrow, a pull changes the mean only a little.
    return torch.tensor(predictive_means(num_pulls, low, high), device=device)
