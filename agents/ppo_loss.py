"""The heads of an actor-critic and the loss of ``PPO`` for discrete actions, in one pass of a kernel.

It is an operation of torch around ``ppo_kernels``. ``PPO.plain`` is the plain form, for all distributions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rl2meta.agents.ppo_kernels import judge, stack
from rl2meta.kernels import empty, flat
from rl2meta.vectors import wide, widened

METRICS = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction")


class Weights(NamedTuple):
    """The numbers in the loss: ε, c_v and c_e."""

    clip_range: float
    value: float
    entropy: float


class Taken(NamedTuple):
    """What is known of the steps of a batch, as ``ppo.Batch`` has it.

    Attributes:
        action, log_prob, advantage, value_target, mask: [T, B].
        log_probs, immediate: of all actions, [T, B, A]; or None.
        legal: bool [T, B, A]; None or [T, B, 0]: every action is legal.
    """

    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    value_target: Tensor
    mask: Tensor
    log_probs: Tensor | None
    immediate: Tensor | None
    legal: Tensor | None


def fused_loss(
    features: Tensor, policy: nn.Linear, value: nn.Linear, taken: Taken, weights: Weights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of ``PPO`` and its metrics, scalars; only the loss has a gradient.

    Args:
        features: of the core, [T, B, features], float32 on the CPU.
        policy: the head that gives the logits.
        value: the head that gives the scaled value.
        taken: the steps.
        weights: the numbers in the loss.
    """
    given = features, policy.weight, policy.bias, value.weight, value.bias
    loss, told = _Loss.apply(*given, taken, weights)  # type: ignore[no-untyped-call]
    return loss, dict(zip(METRICS, told.unbind(), strict=True))


class _Loss(torch.autograd.Function):
    """Features [T, B, F] and the weights of the heads -> the loss, a scalar, and the metrics, [5].

    The gradient is found with the loss, and waits for the way back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        *heads, taken, weights = given
        x, size = widened(x), x.shape[-1]
        features, outputs = x.shape[-1], len(heads[0]) + 1
        read = *packed_heads(heads, features), *known_of(taken)
        d_x, d_rows, d_bias = x.new_empty(x.shape), x.new_zeros(outputs, features), x.new_zeros(outputs)
        found, sums = map(flat, (d_x, d_rows, d_bias)), np.zeros(len(METRICS))
        numbers = np.array([*weights, 1 / float(taken.mask.sum())])
        rows, columns, bias, known, action, every = read
        judge(flat(x), rows, columns, bias, known, action, *every, *found, sums, numbers)
        ctx.found = [d_x[..., :size], *of_heads(d_rows, d_bias, size)]
        loss, metrics = told_of(sums, weights)
        ctx.mark_non_differentiable(metrics)
        return loss, metrics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.found if float(d_loss) == 1 else [each * d_loss for each in ctx.found]
        return *found, None, None


def packed_heads(heads: Sequence[Tensor], features: int) -> tuple[Any, Any, Any]:
    """Return rows, columns and bias of both heads as the kernels read them.

    Args:
        heads: weight and bias of the policy's, then of the value's.
        features: how many the kernels read, of which some may be added.
    """
    outputs, width = len(heads[0]) + 1, wide(len(heads[0]) + 1)
    rows, columns, bias = map(empty, (outputs * features, width * features, width))
    stack(*map(flat, heads), rows, columns, bias, heads[0].shape[1])
    return rows, columns, bias


def known_of(taken: Taken) -> tuple[Any, Any, tuple[Any, Any, Any]]:
    """Return what kernels read of steps: numbers [4, T, B], actions, and what is known of every action."""
    known = torch.stack((taken.log_prob, taken.advantage, taken.value_target, taken.mask))
    old = immediate = empty(0)
    if taken.log_probs is not None and taken.immediate is not None:
        old, immediate = flat(taken.log_probs), flat(taken.immediate)
    return flat(known), flat(taken.action), (old, immediate, which(taken.legal))


def which(legal: Tensor | None) -> Any:
    """Return which actions are legal as the kernels read it, empty if all are."""
    return np.empty(0, np.bool_) if legal is None else flat(legal)


def of_heads(rows: Tensor, bias: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of weight and bias of the policy's and the value's head from those of the rows."""
    return rows[:-1, :size].contiguous(), bias[:-1], rows[-1:, :size].contiguous(), bias[-1:]


def told_of(sums: Any, weights: Weights) -> tuple[Tensor, Tensor]:
    """Return the loss, [], and ``METRICS``, [5], from the sums of the kernel."""
    won, lost, entropy = sums[:3]
    loss = weights.value * lost - won - weights.entropy * entropy
    told = torch.tensor([loss, -won, *sums[1:]], dtype=torch.float32)
    return told[0], told[1:]
