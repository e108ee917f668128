"""Advantages from the regrets of all actions: what an action costs now, without sampling, and what follows.

Where a family reveals the regret of every action, u_t(a) = −regret, the immediate part of an advantage is an
expectation over all actions, and only what follows from the agent's greater knowledge is sampled.
"""

from collections.abc import Sequence
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
)
from rl2meta.shards import ALONE, Shards
from rl2meta.trial import TimeStep, Trajectory


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
    """

    immediate: Tensor
    future: Tensor
    value_target: Tensor


class Given(NamedTuple):
    """A batch of trials, with what the network said of it.

    Attributes:
        trajectory: with ``regrets`` in its truth.
        inputs: in units of the network.
        known: what the critic sees.
        log_probs: of all actions, under the policy that acted, [T, B, A].
        value: W_t per step that may follow, by the agent's value head, [T, B]; used without a critic.
    """

    trajectory: Trajectory
    inputs: TimeStep
    known: Known
    log_probs: Tensor
    value: Tensor


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
    given: Sequence[Given],
    scale: Tensor,
    gamma: float,
    trace: float,
    critic: PrivilegedCritic | None,
    generators: Sequence[torch.Generator],
    shards: Shards = ALONE,
) -> tuple[list[Judged], Tensor]:
    """Return the advantages of a batch; teach the critic what followed.

    Args:
        given: the trials of each own shard.
        scale: unit of the value, a scalar.
        gamma: γ, across the episodes of a trial.
        trace: λ.
        critic: estimates W_t per step that may follow.
        generators: of the critic's minibatches, one for each own shard.
        shards: of the batch.

    Returns:
        The advantages of each own shard, and the part of the variance of G that W explains,
        1 − Var(G − W) / Var(G); 0 without variance.
    """
    found = [_following(each, scale, gamma, trace, critic) for each in given]
    follows = [each.may_follow for each in found]
    if critic is not None and gamma > 0:
        targets = [each.target for each in found]
        critic.learn([each.known for each in given], targets, follows, generators, shards)
    immediate, log_probs = [each.advantages.immediate for each in found], [each.log_probs for each in given]
    spread = _spread(immediate, log_probs, [each.trajectory.mask.float() for each in given], shards) + 1e-8
    futures = [each.advantages.future for each in found]
    mean = shards.mean_or_zero(futures, follows)
    centred = [(future - mean) * may_follow for future, may_follow in zip(futures, follows, strict=True)]
    explained = shards.explained_variance([each.advantages.returns for each in found], futures, follows)
    pairs = zip(found, centred, strict=True)
    return [
        Judged(each.advantages.immediate / spread, future / spread, each.target) for each, future in pairs
    ], explained


class _Following(NamedTuple):
    """The advantages of a shard in the unit of rewards, the target of W, and where a step may follow."""

    advantages: AllActions
    target: Tensor
    may_follow: Tensor


def _following(
    given: Given, scale: Tensor, gamma: float, trace: float, critic: PrivilegedCritic | None
) -> _Following:
    mask, left = given.trajectory.mask.float(), given.trajectory.steps_left()
    discount = gamma * torch.cat([mask[1:], torch.zeros_like(mask[:1])])  # [T, B], 0 at a trial's last step
    # Whether a step may follow does not depend on the action. If W were 0 wherever an action has ended the
    # trial, it would hide what that action avoids.
    may_follow = (left > 1).float()  # [T, B], 0 on padding
    # W is predicted per step that may follow, as it falls to 0 with their number.
    length = scale * gamma * discounted_lengths(left - 1, gamma) * may_follow
    value = given.value
    if critic is not None:
        with torch.no_grad():
            value = critic(given.known)
    regrets = given.trajectory.truth["regrets"]
    found = all_action_advantages(regrets, given.log_probs, value * length, discount, trace)
    target = found.returns / length.clamp(min=1e-8) * (length > 0)
    return _Following(found, target, may_follow)


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


def _spread(
    immediate: Sequence[Tensor], log_probs: Sequence[Tensor], masks: Sequence[Tensor], shards: Shards
) -> Tensor:
    """Return the root mean square of immediate advantages under the policy, √E Σₐ π(a) A(a)²."""
    pairs = zip(immediate, log_probs, strict=True)
    squares = [(each.exp() * advantage.square()).sum(dim=-1) for advantage, each in pairs]
    return shards.masked_mean(squares, masks).sqrt()
