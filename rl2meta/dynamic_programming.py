"""Exact finite-horizon optima of many tabular MDPs in one call."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Backup = Callable[[Tensor, int], Tensor]
"""(V_{t+1} [B, S], number of steps after step t, H − 1 − t) -> Q_t [B, S, A]."""


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
        transitions: P(s' | s, a), [B, S, A, S]; if a row sums to less than 1, the rest is the probability
            that the episode ends.
        horizon: H.
    """
    expected = expectation(transitions)
    return backward_induction(lambda value, _: rewards + expected(value), _nothing(rewards), horizon)


def backward_induction(backup: Backup, value: Tensor, horizon: int) -> Optimum:
    """Return V_t(s) = maxₐ Q_t(s, a) and Q_t = backup(V_{t+1}, H − 1 − t) for t = H − 1 … 0.

    Args:
        backup: computes Q_t from V_{t+1}.
        value: V_H, [B, S].
        horizon: H.
    """
    values, action_values = [], []
    for to_go in range(horizon):
        action_values.append(backup(value, to_go))
        value = action_values[-1].amax(dim=-1)
        values.append(value)
    return Optimum(torch.stack(values[::-1], dim=1), torch.stack(action_values[::-1], dim=1))


def evaluate_policy(rewards: Tensor, transitions: Tensor, policy: Tensor) -> Tensor:
    """Return V^π_t(s), [B, H, S], of the stochastic policies π_t(a | s) [B, H, S, A]."""
    value, expected = _nothing(rewards), expectation(transitions)
    stages = []
    for stage in policy.flip(1).unbind(1):
        value = (stage * (rewards + expected(value))).sum(dim=-1)
        stages.append(value)
    return torch.stack(stages[::-1], dim=1)


def expectation(transitions: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the map from V [B, S] to Σ_s' P(s' | s, a) V(s'), [B, S, A], for P [B, S, A, S].

    P is copied once with s' before (s, a), because for many small matrices a product vector times matrix is
    several times faster than matrix times vector.
    """
    next_first = transitions.flatten(1, 2).transpose(1, 2).contiguous()  # [B, S, S × A]
    return lambda value: (value.unsqueeze(1) @ next_first).view(transitions.shape[:-1])


def _nothing(rewards: Tensor) -> Tensor:
    return torch.zeros_like(rewards[..., 0])
