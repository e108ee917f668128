"""The heads of an actor-critic and the loss of ``PPO`` for discrete actions, in one pass of a kernel.

It is an operation of torch around ``ppo_kernels``. ``PPO.plain`` is the plain form, for all distributions.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rl2meta.agents.ppo_kernels import descend
from rl2meta.kernels import flat
from rl2meta.networks import legal_only

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
    given = features.flatten(0, 1), policy.weight, policy.bias, value.weight, value.bias
    loss, told = _Loss.apply(*given, taken, weights)  # type: ignore[no-untyped-call]
    return loss, dict(zip(METRICS, told.unbind(), strict=True))


class _Loss(torch.autograd.Function):
    """Features [N, F] and the weights of the heads -> the loss, a scalar, and the metrics, [5]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        policy, policy_bias, value, value_bias, taken, weights = given
        heads, biases = (
            torch.cat([policy, value]),
            torch.cat([policy_bias, value_bias]),
        )  # [A + 1, F], [A + 1]
        out = torch.addmm(biases.unsqueeze(1), heads, x.t())  # [A + 1, N]
        if taken.legal is not None and taken.legal.shape[-1]:
            out[:-1] = legal_only(out[:-1], taken.legal.flatten(0, 1).t())
        told = x.new_empty(1 + len(METRICS))  # the loss first
        every = [x.new_empty(0) if each is None else each for each in (taken.log_probs, taken.immediate)]
        arrays = [flat(each) for each in (out, *taken[:5], *every, told)]
        descend(*arrays, np.array([*weights, 1 / float(taken.mask.sum())]))
        ctx.save_for_backward(x, heads, out)  # now the gradient of what it was
        loss, metrics = told[0], told[1:]
        ctx.mark_non_differentiable(metrics)
        return loss, metrics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, heads, slopes = ctx.saved_tensors
        d_out = slopes * d_loss
        d_heads, d_bias = d_out @ x, d_out.sum(dim=1)
        return d_out.t() @ heads, d_heads[:-1], d_bias[:-1], d_heads[-1:], d_bias[-1:], None, None
