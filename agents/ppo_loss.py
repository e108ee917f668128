"""The heads of an actor-critic and the loss of ``PPO`` for discrete actions, in one pass compiled by Numba.

A minibatch has some thousand steps of few actions, for which torch's operations take longer to begin than to
compute. Here one loop over the steps finds the loss and its gradient, which is written by hand. With π from the
logits z, z of the action taken z_b, share m = mask / Σ mask and ρ A as far as it is not clipped:

    dL/dz_a = m [−ρA (1[a = b] − π_a) + c_e π_a (log π_a + H) − s_a + π_a Σ s],   dL/dv = 2 m c_v (v − v_target)

with s_a = π_old(a) ρ_a Â_a for the advantages of all actions, or 0. ``PPO`` has the plain form for all distributions.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rl2meta.agents.cores.lstm_kernels import kept_on_disk
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
        policy, value: the heads.
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
        heads = torch.cat([policy, value])  # [A + 1, F]
        out = torch.addmm(torch.cat([policy_bias, value_bias]).unsqueeze(1), heads, x.t())  # [A + 1, N]
        if taken.legal is not None and taken.legal.shape[-1]:
            out[:-1] = legal_only(out[:-1], taken.legal.flatten(0, 1).t())
        told = x.new_empty(len(METRICS) + 1)  # the loss first
        none = x.new_empty(0)
        rows = none if taken.log_probs is None else taken.log_probs, none if taken.immediate is None else taken.immediate
        arrays = [_flat(each) for each in (out, *taken[:5], *rows, told)]
        numbers = np.array([*weights, 1 / float(taken.mask.sum())])
        _descend(*arrays, numbers, len(out) - 1, taken.immediate is not None)
        ctx.save_for_backward(x, heads, out)  # out is now its own gradient
        loss, metrics = told[0], told[1:]
        ctx.mark_non_differentiable(metrics)
        return loss, metrics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, heads, d_out = ctx.saved_tensors
        d_out = d_out * d_loss
        d_heads, d_bias = d_out @ x, d_out.sum(dim=1)
        return d_out.t() @ heads, d_heads[:-1], d_bias[:-1], d_heads[-1:], d_bias[-1:], None, None


def _flat(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy().reshape(-1)


@kept_on_disk
def _descend(out, action, log_prob, advantage, target, mask, old, immediate, told, numbers, actions, sees_all):  # type: ignore[no-untyped-def]
    """Put the gradient by logits and value, [A + 1, N], in their place; set loss and metrics.

    ``numbers`` are ε, c_v, c_e and 1 / Σ mask.
    """
    one, two = np.float32(1), np.float32(2)
    clip, cost = np.float32(numbers[0]), np.float32(numbers[2])
    gain = lost = entropies = divergence = beyond = 0.0
    log_pi = np.empty(actions, np.float32)
    pi, slope = np.empty(actions, np.float32), np.empty(actions, np.float32)
    rows = len(action)
    for row in range(rows):
        share = np.float32(mask[row] * numbers[3])
        top = out[row]
        for a in range(1, actions):
            top = max(top, out[a * rows + row])
        total = np.float32(0)
        for a in range(actions):
            log_pi[a] = out[a * rows + row] - top
            pi[a] = math.exp(log_pi[a])
            total += pi[a]
        bottom, scale, entropy = np.float32(math.log(total)), one / total, np.float32(0)
        for a in range(actions):
            log_pi[a] -= bottom
            pi[a] *= scale
            entropy -= pi[a] * log_pi[a]
            slope[a] = 0
        change = log_pi[action[row]] - log_prob[row]
        ratio = np.float32(math.exp(change))
        reached, bounded = ratio * advantage[row], min(max(ratio, one - clip), one + clip) * advantage[row]
        won = min(reached, bounded)
        if reached <= bounded:
            slope[action[row]] = reached
        if sees_all:
            for a in range(actions):
                place = row * actions + a
                before = np.float32(math.exp(old[place]))  # π = π_old ρ cannot overflow; ρ can
                reached = pi[a] * immediate[place]
                bounded = min(max(pi[a], (one - clip) * before), (one + clip) * before) * immediate[place]
                won += min(reached, bounded)
                if reached <= bounded:
                    slope[a] += reached
        whole = np.float32(0)
        for a in range(actions):
            whole += slope[a]
        for a in range(actions):
            push = cost * pi[a] * (log_pi[a] + entropy) - slope[a] + pi[a] * whole
            out[a * rows + row] = share * push
        error = out[actions * rows + row] - target[row]
        out[actions * rows + row] = two * share * np.float32(numbers[1]) * error
        step = np.float32(math.expm1(change))
        gain += share * won
        lost += share * error * error
        entropies += share * entropy
        divergence += share * (step - change)
        beyond += share * (abs(step) > clip)
    told[0] = numbers[1] * lost - gain - numbers[2] * entropies
    told[1], told[2], told[3], told[4], told[5] = -gain, lost, entropies, divergence, beyond
