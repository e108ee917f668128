"""Returns and advantages: arrays in, arrays out. No gamma and no done; the discount is data."""

import torch
from torch import Tensor


def gae(reward: Tensor, discount: Tensor, value: Tensor, trace: float) -> Tensor:
    """Return generalised advantage estimates.

        δₜ = rₜ + γₜ vₜ₊₁ − vₜ        Aₜ = δₜ + γₜ λ Aₜ₊₁

    with v and A zero after the last row. λ = 0 gives δ, λ = 1 the discounted return minus the value. The
    discount says where value flows: γ inside an episode; 0 where nothing that follows counts. Write 0 at an
    episode's end to cut there, keep γ to let value flow into the next episode of the trial.

    Args:
        reward: rₜ, [T, ...].
        discount: γₜ, applied to what follows step t, [T, ...].
        value: vₜ, [T, ...].
        trace: λ in [0, 1].

    Returns:
        Aₜ, [T, ...].

    Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16.
    """
    following = torch.cat([value[1:], torch.zeros_like(value[:1])])
    return discounted_returns(reward + discount * following - value, discount * trace)


def discounted_returns(reward: Tensor, discount: Tensor) -> Tensor:
    """Return Gₜ = rₜ + γₜ Gₜ₊₁, with G zero after the last row; all [T, ...]."""
    result = torch.empty_like(reward)
    carried = torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        carried = reward[t] + discount[t] * carried
        result[t] = carried
    return result
