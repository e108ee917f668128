"""Rewards, returns and advantages as functions of tensors; discounts, one per step, replace done flags."""

from typing import Literal

import torch
from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.trial import Trajectory

RewardSignal = Literal["auto", "sampled", "expected", "regret"]


def gae(reward: Tensor, discount: Tensor, value: Tensor, trace: float) -> Tensor:
    """Return generalised advantage estimates.

        δₜ = rₜ + γₜ vₜ₊₁ − vₜ        Aₜ = δₜ + γₜ λ Aₜ₊₁

    with v and A zero after the last row. λ = 0 gives δ; λ = 1 gives the discounted return minus the value.
    The discount is γ inside an episode, and 0 where later rewards do not count. At an episode's end, 0 stops
    the return there; γ continues it into the next episode of the trial.

    Args:
        reward: rₜ, [T, ...].
        discount: γₜ, of the rewards after step t, [T, ...].
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


def discounted_lengths(steps: Tensor, gamma: float) -> Tensor:
    """Return max(1, Σ_{k<n} γᵏ) for each number n of steps."""
    n = steps.clamp(min=1)
    if gamma == 1.0:
        return n.float()
    return ((1.0 - gamma ** n.double()) / (1.0 - gamma)).float()


def reward_signal(trajectory: Trajectory, signal: RewardSignal) -> Tensor:
    """Return the reward for the loss, [T, B]: the sampled reward, the expected reward, or minus the regret.

    The agent never observes the expected reward or the regret. With γ = 1, all three have the same optimal
    policies. The expected reward has no sampling noise; minus the regret also has no noise from easy and hard
    tasks. If episodes have several steps, −regret is on average r + V*(s') − V*(s). It already contains the
    consequences of an action within its episode, so γ weights only the value of what the agent learns from
    it. With γ = 0, the optimal policy takes the action with the highest E[Q*(s, a) | history].

    Raises:
        UserError: if the family does not provide the signal.
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
    """Return Σ x m / Σ m over all entries, or over the axes ``dim``, which are kept with length 1.

    The mask m has entries 0 and 1, or any weights >= 0.
    """
    keep = dim is not None
    return (x * mask).sum(dim, keepdim=keep) / mask.sum(dim, keepdim=keep)


def mean_or_zero(x: Tensor, mask: Tensor) -> Tensor:
    """Return Σ x m / Σ m for a mask m of entries 0 and 1, or 0 if the mask excludes everything."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def explained_variance(target: Tensor, error: Tensor, mask: Tensor) -> Tensor:
    """Return 1 − Var(error) / Var(target) over the entries of the mask, or 0 for a target without variance.

    It is 1 for a perfect prediction, 0 for a constant one, and negative for worse ones.

    Args:
        target: what was to be predicted.
        error: ``target`` minus the prediction.
        mask: of entries 0 and 1.
    """
    total = _variance(target, mask)
    return torch.where(total > 0, 1 - _variance(error, mask) / total, 0.0)


def _variance(x: Tensor, mask: Tensor) -> Tensor:
    return mean_or_zero((x - mean_or_zero(x, mask)).square(), mask)


def standardised(x: Tensor, mask: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """Return (x − mean) / (standard deviation), both computed with ``masked_mean``."""
    centred = x - masked_mean(x, mask, dim)
    return centred / (masked_mean(centred.square(), mask, dim).sqrt() + 1e-8)


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Return min(ρA, clip(ρ, 1−ε, 1+ε)A) elementwise, with ρ = exp(log_ratio).

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.min(ratio * advantage, clipped * advantage)
