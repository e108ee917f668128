"""Plans for one episode of an MDP that is only partly known, computed from the posterior.

Every planner returns Q_t(s, a) [B, H, S, A] of a finite horizon. Planners differ in the MDP that they solve:
the posterior's mean, a sample of the posterior, or the best MDP that is still plausible.

Source: the baselines of Duan et al. 2016 (arXiv 1611.02779), table 2, in the variants and with the constants
of the implementation used there (TabulaRL, Osband).
"""

import math
from collections.abc import Callable, Iterator
from functools import reduce, wraps
from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.dynamic_programming import backward_induction, expectation, solve
from rl2meta.parts import in_parts

_CACHED = {"cpu": 2**17}  # entries of P that fit in a core's cache, with all intermediate results
_LOT = {"cpu": 2**17}  # entries of P that are drawn in one call; another number would change the draws
_ELSEWHERE = 2**26


class Posterior(NamedTuple):
    """The posterior of B MDPs, independent over (s, a): normal mean rewards, Dirichlet transitions.

    Attributes:
        mean: of the posterior of the mean reward, [B, S, A].
        precision: 1 / variance of the posterior of the mean reward, [B, S, A].
        weights: parameters of the Dirichlet posterior of P(· | s, a), > 0, [B, S, A, S].
        concentration: lower bound of all weights.
        episode: number of episodes of the trial so far.
        generator: random stream of the planners.
    """

    mean: Tensor
    precision: Tensor
    weights: Tensor
    concentration: float
    episode: int
    generator: torch.Generator

    def transitions(self) -> Tensor:
        """Return the posterior mean of P(s' | s, a), [B, S, A, S]."""
        return self.weights / self.weights.sum(dim=-1, keepdim=True)

    def of(self, part: slice) -> "Posterior":
        """Return the posterior of a slice of the MDPs."""
        return self._replace(mean=self.mean[part], precision=self.precision[part], weights=self.weights[part])


Planner = Callable[[Posterior, int], Tensor]
"""Posterior and horizon H -> Q_t(s, a), [B, H, S, A]."""


def indifferent(posterior: Posterior, horizon: int) -> Tensor:
    """Return the value 0 for every action."""
    num_tasks, num_states, num_actions = posterior.mean.shape
    return posterior.mean.new_zeros(num_tasks, horizon, num_states, num_actions)


def _some_at_a_time(plan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a planner without random draws process some MDPs at a time."""

    @wraps(plan)
    def planner(posterior: Posterior, horizon: int, **constants: float) -> Tensor:
        parts = (posterior.of(part) for part in cached_parts(posterior.weights))
        return torch.cat([plan(part, horizon, **constants) for part in parts])

    return planner


@_some_at_a_time
def greedy(posterior: Posterior, horizon: int) -> Tensor:
    """Solve the posterior's mean MDP."""
    return solve(posterior.mean, posterior.transitions(), horizon).action_value


def psrl(posterior: Posterior, horizon: int) -> Tensor:
    """Solve one MDP drawn from the posterior (Strens 2000; Osband et al. 2013).

    All draws come before the first solution, so the number of MDPs solved at a time does not change them.
    """
    rewards, transitions = map(torch.cat, zip(*_draws(posterior), strict=True))
    parts = cached_parts(transitions)
    return torch.cat([solve(rewards[part], transitions[part], horizon).action_value for part in parts])


def _draws(posterior: Posterior) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw an MDP from each posterior; yield rewards [b, S, A] and transitions [b, S, A, S] in lots."""
    for lot in _lots(posterior.weights):
        seen = posterior.of(lot)
        noise = torch.randn(seen.mean.shape, generator=seen.generator, device=seen.mean.device)
        rewards = seen.mean + noise * seen.precision.rsqrt()
        yield rewards, sample_dirichlet(seen.weights, seen.generator, seen.concentration)


def opsrl(posterior: Posterior, horizon: int, samples: int) -> Tensor:
    """Solve N MDPs drawn from the posterior, and return the maximum of Q_t(s, a) (Osband et al. 2014)."""
    return reduce(torch.maximum, (psrl(posterior, horizon) for _ in range(samples)))


@_some_at_a_time
def beb(posterior: Posterior, horizon: int, scaling: float) -> Tensor:
    """Solve the posterior's mean MDP with a bonus for pairs (s, a) with few visits.

        Q_t = r̂ + 1/(τ + 1) + P̂ V_{t+1} + (H − 1 − t) β H / (1 + w),  β = 2 H² scaling

    where τ is the posterior precision of the mean reward, and w(s, a) the sum of the Dirichlet parameters.

    Source: Kolter & Ng 2009, with the bonuses of the implementation that Duan et al. 2016 used.
    """
    weight = posterior.weights.sum(dim=-1)
    rewards, bonus = beb_rewards(posterior.mean, posterior.precision, weight, horizon, scaling)
    expected = expectation(posterior.transitions())

    def backup(value: Tensor, to_go: int) -> Tensor:
        return rewards + to_go * bonus + expected(value)

    return backward_induction(backup, torch.zeros_like(rewards[..., 0]), horizon).action_value


def beb_rewards(
    mean: Tensor, precision: Tensor, weight: Tensor, horizon: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """Return r̂ + 1/(τ + 1) and β H / (1 + w), the rewards of ``beb`` and its bonus for each later step."""
    return mean + 1 / (precision + 1), 2 * horizon**3 * scaling / (1 + weight)


@_some_at_a_time
def ucrl2(posterior: Posterior, horizon: int, scaling: float, delta: float = 0.05) -> Tensor:
    """Solve the best MDP within confidence bounds, by extended value iteration.

    In episode k = 0, 1, …, rewards may exceed their means by c √(4 l / n), and transitions may differ from
    their means by c √(4 S l / n) in the L1 norm, with l = ln(2 S A (k + 1) / δ) and c = scaling.

    The bounds assume a prior that is worth almost no visit. Then the number of visits n is the precision for
    rewards, and the sum of the Dirichlet parameters for transitions (at least 1 each).

    Source: Jaksch et al. 2010, section 3, for episodes of a fixed horizon. The implementation that Duan et
    al. 2016 used changes its estimate of P at every stage and starts the next stage from the changed
    estimate; here every stage starts from the original estimate.
    """
    num_states, num_actions = posterior.mean.shape[1:]
    spread = 4 * scaling**2 * math.log(2 * num_states * num_actions * (posterior.episode + 1) / delta)
    rewards = posterior.mean + (spread / posterior.precision.clamp(min=1)).sqrt()
    visits = posterior.weights.sum(dim=-1).clamp(min=1)
    expected = optimistic_expectation(posterior.transitions(), (num_states * spread / visits).sqrt())
    start = torch.zeros_like(rewards[..., 0])
    return backward_induction(lambda value, _: rewards + expected(value), start, horizon).action_value


def optimistic_expectation(transitions: Tensor, radius: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the map from V [B, S] to max Σ_s' P'(s' | s, a) V(s') over ‖P' − P‖₁ ≤ radius, [B, S, A].

    The best P' moves probability radius/2 (or all, if there is less) from the worst states to the best one.
    With values v₁ ≤ … ≤ v_S and C_k, the probability of the k worst states, the maximum is

        v_S − Σ_{k<S} max(C_k − radius/2, 0) (v_{k+1} − v_k)

    Args:
        transitions: P, [B, S, A, S], rows that sum to 1.
        radius: maximum L1 distance, [B, S, A].
    """
    flat, moved = transitions.flatten(1, 2), radius.flatten(1).unsqueeze(-1) / 2

    def expected(value: Tensor) -> Tensor:
        worst_first, order = value.sort(dim=-1)
        probability = flat.gather(2, order.unsqueeze(1).expand_as(flat))  # [B, S × A, S], worst first
        kept = (probability.cumsum(dim=2)[..., :-1] - moved).clamp(min=0)  # [B, S × A, S − 1]
        lost = kept @ worst_first.diff(dim=-1).unsqueeze(-1)  # [B, S × A, 1]
        return (worst_first[:, -1:, None] - lost).view(radius.shape)

    return expected


def sample_dirichlet(weights: Tensor, generator: torch.Generator, least: float) -> Tensor:
    """Draw from Dirichlet(weights) along the last axis, by normalised gamma variables.

    Args:
        weights: the parameters, > 0.
        generator: random stream of the draws.
        least: a lower bound of the weights; given, because its computation would wait for the device.

    Returns:
        The draws, in the shape of ``weights``.
    """
    if least >= 1:
        gamma = _gamma(weights, generator)
        return gamma / gamma.sum(dim=-1, keepdim=True)
    # With small weights all gammas may round to 0, so this computes logarithms: Gamma(w) has the same
    # distribution as Gamma(w + 1) U^{1/w}.
    uniform = 1 - torch.rand(weights.shape, generator=generator, device=weights.device)  # in (0, 1]
    return (_gamma(weights + 1, generator).log() + uniform.log() / weights).softmax(dim=-1)


def _gamma(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Draw Gamma(shape), shapes >= 1; on a CPU three times as fast as torch, which draws one at a time.

    Source: Marsaglia & Tsang 2000. About one proposal in thirty is rejected; torch draws its replacement.
    """
    if shape.device.type != "cpu":
        return torch._standard_gamma(shape, generator=generator)
    shape, size = shape.flatten(), shape.shape
    d = shape - 1 / 3
    normal = torch.randn(shape.shape, generator=generator)
    v = (1 + normal * (9 * d).rsqrt()) ** 3
    uniform = torch.rand(shape.shape, generator=generator)
    # If v <= 0, its logarithm is NaN or −inf, and the comparison is false.
    accepted = uniform.log() < 0.5 * normal.square() + d * (1 - v + v.log())
    rejected = (~accepted).nonzero().squeeze(1)
    again = torch._standard_gamma(shape[rejected], generator=generator)
    return (d * v).index_copy(0, rejected, again).view(size)


def cached_parts(transitions: Tensor, multiple_of: int = 1) -> list[slice]:
    """Return slices of the MDPs; on a CPU, a slice is small enough to stay in the cache."""
    most = _CACHED.get(transitions.device.type, _ELSEWHERE)
    return in_parts(len(transitions), transitions[0].numel(), most, multiple_of)


def _lots(transitions: Tensor) -> Iterator[slice]:
    """Yield slices of MDPs to draw in one call; they never depend on memory, because they fix the draws."""
    num_tasks = max(1, _LOT.get(transitions.device.type, _ELSEWHERE) // transitions[0].numel())
    for start in range(0, len(transitions), num_tasks):
        yield slice(start, start + num_tasks)
