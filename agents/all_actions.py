"""Advantages from the regrets of all actions: what an action costs now, without sampling, and what follows.

Where a family reveals the regret of every action, u_t(a) = −regret, the immediate part of an advantage is an
expectation over all actions, and only what follows from the agent's greater knowledge is sampled.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.agents.ppo_config import PPOConfig
from rl2meta.agents.privileged_critic import Known, PrivilegedCritic
from rl2meta.errors import UserError
from rl2meta.networks import Categorical
from rl2meta.returns import (
    discounted_lengths,
    discounted_returns,
    explained_variance,
    masked_mean,
    mean_or_zero,
)
from rl2meta.trial import Trajectory


class AllActions(NamedTuple):
    """Advantages of whole trials.

    Attributes:
        immediate: u_t(a) − E_π u_t, [T, B, A].
        future: G_t − W_t, [T, B].
        returns: G_t, [T, B].
    """

    immediate: Tensor
    future: Tensor
    returns: Tensor


class Judged(NamedTuple):
    """A batch of trials as the loss needs it.

    Attributes:
        immediate: advantages of all actions, in units of their spread, [T, B, A].
        future: advantages of the actions taken, in the same unit, around 0, [T, B].
        value_target: G_t per step that may follow, in the unit of the value, [T, B].
        explained: the part of the variance of G that W explains, 1 − Var(G − W) / Var(G); 0 without variance.
    """

    immediate: Tensor
    future: Tensor
    value_target: Tensor
    explained: Tensor


def sees_all(config: PPOConfig, trajectory: Trajectory) -> bool:
    """Return whether a loss with the surrogate auto or all_actions uses the regrets of all actions.

    Raises:
        UserError: if settings want it, and the family does not reveal them.
    """
    known = "regrets" in trajectory.truth
    if config.surrogate == "all_actions" and not known:
        raise UserError(
            "agent.surrogate: expected a family that reveals the regret of every action, got one that "
            f"reveals {sorted(trajectory.truth)}; use agent.surrogate=auto"
        )
    if not known:
        refuse_unused(config, known)
    return known


def refuse_unused(config: PPOConfig, known: bool) -> None:
    """Refuse settings that need the regrets of all actions: without these they would do nothing.

    Args:
        config: whose loss does not use these regrets.
        known: whether the family may reveal them.
    """
    off = {"critic": "head", "auxiliary_coefficient": 0.0}
    where = f"agent.surrogate={config.surrogate}" if known else "a family that does not reveal all regrets"
    more = ", or agent.surrogate=all_actions" if known else ""
    for key, unused in off.items():
        if (given := getattr(config, key)) != unused:
            raise UserError(
                f"agent.{key}: expected {unused} with {where}, got {given}; use agent.{key}={unused}{more}"
            )


def judged(
    trajectory: Trajectory,
    known: Known,
    log_probs: Tensor,
    value: Tensor,
    scale: Tensor,
    gamma: float,
    trace: float,
    critic: PrivilegedCritic | None,
    generator: torch.Generator,
) -> Judged:
    """Return the advantages of a batch; teach the critic what followed.

    Args:
        trajectory: with ``regrets`` in its truth.
        known: what the critic sees.
        log_probs: of all actions, under the policy that acted, [T, B, A].
        value: W_t per step that may follow, by the agent's value head, [T, B]; used without a critic.
        scale: unit of the value, a scalar.
        gamma: γ, across the episodes of a trial.
        trace: λ.
        critic: estimates W_t per step that may follow.
        generator: of the critic's minibatches.
    """
    mask, left = trajectory.mask.float(), trajectory.steps_left()
    discount = gamma * torch.cat([mask[1:], torch.zeros_like(mask[:1])])  # [T, B], 0 at a trial's last step
    # Whether a step may follow does not depend on the action. If W were 0 wherever an action has ended the
    # trial, it would hide what that action avoids.
    may_follow = (left > 1).float()  # [T, B], 0 on padding
    # W is predicted per step that may follow, as it falls to 0 with their number.
    length = scale * gamma * discounted_lengths(left - 1, gamma) * may_follow
    if critic is not None:
        with torch.no_grad():
            value = critic(known)
    regrets = trajectory.truth["regrets"]
    found = all_action_advantages(regrets, log_probs, value * length, discount, trace)
    target = found.returns / length.clamp(min=1e-8) * (length > 0)
    if critic is not None and gamma > 0:
        critic.learn(known, target, may_follow, generator)
    spread = _spread(found.immediate, log_probs, mask) + 1e-8
    future = (found.future - mean_or_zero(found.future, may_follow)) * may_follow
    explained = explained_variance(found.returns, found.future, may_follow)
    return Judged(found.immediate / spread, future / spread, target, explained)


def all_action_advantages(
    regrets: Tensor, log_probs: Tensor, value: Tensor, discount: Tensor, trace: float
) -> AllActions:
    """Return the advantages of now, for all actions, and of what follows, for the actions taken.

        G_t = γ_t (E_π u_{t+1} + (1 − λ) W_{t+1} + λ G_{t+1}),    u = −regret

    Args:
        regrets: of every action, [T, B, A].
        log_probs: of the policy that acted, [T, B, A].
        value: W_t, an estimate of G_t that does not depend on a_t, [T, B].
        discount: γ_t, 0 at the last step of a trial, [T, B].
        trace: λ in [0, 1].
    """
    expected = -(log_probs.exp() * regrets).sum(dim=-1)  # [T, B]
    ahead = torch.cat([(expected + (1 - trace) * value)[1:], torch.zeros_like(value[:1])])
    returns = discounted_returns(discount * ahead, discount * trace)
    return AllActions(-regrets - expected.unsqueeze(-1), returns - value, returns)


def all_action_surrogate(
    policy: Categorical, log_probs: Tensor, immediate: Tensor, clip_range: float
) -> Tensor:
    """Return Σₐ π_old(a) min(ρₐ Âₐ, clip(ρₐ, 1−ε, 1+ε) Âₐ), [T, B].

    Args:
        policy: π.
        log_probs: log π_old, [T, B, A].
        immediate: Â, [T, B, A].
        clip_range: ε.
    """
    # π = π_old ρ cannot overflow; ρ of an action that was nearly impossible can.
    old, new = log_probs.exp(), policy.log_probs.exp()  # [T, B, A]
    clipped = new.clamp((1 - clip_range) * old, (1 + clip_range) * old)
    return torch.min(new * immediate, clipped * immediate).sum(dim=-1)


def _spread(immediate: Tensor, log_probs: Tensor, mask: Tensor) -> Tensor:
    """Return the root mean square of immediate advantages under the policy, √E Σₐ π(a) A(a)²."""
    return masked_mean((log_probs.exp() * immediate.square()).sum(dim=-1), mask).sqrt()
