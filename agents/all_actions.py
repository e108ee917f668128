"""Advantages from the regrets of all actions: what an action costs now without sampling, and what it teaches.

Where a family reveals the regret of every action, u_t(a) = −regret, the immediate part of an advantage is an
expectation over all actions, and only what follows from the agent's greater knowledge is sampled.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.returns import discounted_returns, masked_mean


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


def all_action_advantages(
    regrets: Tensor, log_probs: Tensor, value: Tensor, discount: Tensor, trace: float
) -> AllActions:
    """Return the advantages of now, for all actions, and those of later, for the actions taken.

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


def spread(immediate: Tensor, log_probs: Tensor, mask: Tensor) -> Tensor:
    """Return the root mean square of immediate advantages under the policy, √E Σ π(a) A(a)², a scalar."""
    return masked_mean((log_probs.exp() * immediate.square()).sum(dim=-1), mask).sqrt()
