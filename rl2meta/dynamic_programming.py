"""Exact finite-horizon optima of many tabular MDPs in one call."""

from typing import NamedTuple

import torch
from torch import Tensor


class Optimum(NamedTuple):
    """The optimum of B tabular MDPs.

    Attributes:
        value: V*_t(s), [B, H, S]: the best expected return of steps t … H − 1 from state s.
        action_value: Q*_t(s, a), [B, H, S, A].
    """

    value: Tensor
    action_value: Tensor


def solve(rewards: Tensor, transitions: Tensor, horizon: int) -> Optimum:
    """Return the optimum by backward induction, undiscounted.

        Q*_t(s, a) = r(s, a) + Σ_s' P(s' | s, a) V*_{t+1}(s'),  V*_t(s) = maxₐ Q*_t(s, a),  V*_H = 0

    Args:
        rewards: r(s, a), [B, S, A].
        transitions: P(s' | s, a), [B, S, A, S]; rows that sum to less than 1 end the episode by the rest.
        horizon: H.
    """
    value = torch.zeros_like(rewards[..., 0])
    stages = []
    for _ in range(horizon):
        stages.append(rewards + expected_next(transitions, value))
        value = stages[-1].amax(dim=-1)
    action_value = torch.stack(stages[::-1], dim=1)
    return Optimum(action_value.amax(dim=-1), action_value)


def evaluate_policy(rewards: Tensor, transitions: Tensor, policy: Tensor) -> Tensor:
    """Return V^π_t(s), [B, H, S], of the stochastic policies π_t(a | s) [B, H, S, A]."""
    value = torch.zeros_like(rewards[..., 0])
    stages = []
    for stage in policy.flip(1).unbind(1):
        value = (stage * (rewards + expected_next(transitions, value))).sum(dim=-1)
        stages.append(value)
    return torch.stack(stages[::-1], dim=1)


def expected_next(transitions: Tensor, value: Tensor) -> Tensor:
    """Return Σ_s' P(s' | s, a) V(s'), [B, S, A], for P [B, S, A, S] and V [B, S]."""
    flat = transitions.flatten(1, 2)
    return (flat @ value.unsqueeze(-1)).reshape(transitions.shape[:-1])
