"""Rewards, returns and advantages: arrays in, arrays out. No gamma and no done; the discount is data."""

from typing import Literal

import torch
from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.trial import Trajectory

RewardSignal = Literal["auto", "sampled", "expected", "regret"]


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


def reward_signal(trajectory: Trajectory, signal: RewardSignal) -> Tensor:
    """Return what the loss takes for reward, [T, B].

    Neither of the latter two is ever an input of the agent. All three have the same optimal policies at
    γ = 1; the expected reward lacks the noise of sampling, and the negative regret also the luck of having
    drawn an easy task. Where episodes have several steps, −regret is in the mean r + V*(s') − V*(s): it holds
    already what an action leads to within its episode, and γ weighs only the worth of what it teaches. At
    γ = 0 the optimal policy takes the action of the highest E[Q*(s, a) | history].

    Raises:
        UserError: if the family does not emit the signal.
    """
    usable = {"sampled": trajectory.reward}
    if "expected_reward" in trajectory.truth:
        usable["expected"] = trajectory.truth["expected_reward"]
    if "regret" in trajectory.truth:
        usable["regret"] = -trajectory.truth["regret"]
    if signal != "auto" and signal not in usable:
        raise UserError(
            f"agent.reward_signal: expected one that the task family emits, {', '.join(usable)} or auto, "
            f"got {signal!r}"
        )
    return usable[signal if signal != "auto" else list(usable)[-1]]


def masked_mean(x: Tensor, mask: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """Return Σ x m / Σ m over all entries, or over the axes ``dim``, which stay with length 1.

    The mask m is 0 or 1, or any weights >= 0.
    """
    keep = dim is not None
    return (x * mask).sum(dim, keepdim=keep) / mask.sum(dim, keepdim=keep)


def standardised(x: Tensor, mask: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """Return (x − mean) / (standard deviation), both as ``masked_mean`` takes them."""
    centred = x - masked_mean(x, mask, dim)
    return centred / (masked_mean(centred.square(), mask, dim).sqrt() + 1e-8)
