"""The loss of ``PPO`` for discrete actions and its gradient in one loop over the steps, compiled by Numba.

A minibatch has some thousand steps of few actions, for which torch's operations take longer to begin than to
compute. With π by the logits z, the action taken b, share m = mask / Σ mask, and ρA unless it is clipped:

    dL/dz_a = m [−ρA (1[a = b] − π_a) + c_e π_a (log π_a + H) − s_a + π_a Σ s]
    dL/dv = 2 m c_v (v − v_target)

with s_a = π_a Â_a for the advantages of all actions where they are not clipped, or 0.
"""

import math

import numpy as np
from numba import njit

from rl2meta.kernels import kept_on_disk

_float = np.float32


@kept_on_disk
def descend(out, action, log_prob, advantage, target, mask, old, immediate, told, numbers):
    """Put the gradient by logits and value, [A + 1, N], in their place; set loss and metrics.

    ``numbers`` are ε, c_v, c_e and 1 / Σ mask. ``old`` and ``immediate``, of all actions, may be empty.
    """
    rows, clip, value_cost, cost = len(action), _float(numbers[0]), _float(numbers[1]), _float(numbers[2])
    actions = len(out) // rows - 1
    log_pi, pi, slope = np.empty(actions, _float), np.empty(actions, _float), np.empty(actions, _float)
    gain = lost = entropies = divergence = beyond = 0.0
    for row in range(rows):
        share, taken = _float(mask[row] * numbers[3]), action[row]
        entropy = _judged(out, row, rows, log_pi, pi)
        change = log_pi[taken] - log_prob[row]
        won = _float(0)
        slope[:] = 0
        if len(immediate):
            won = _all_clipped(pi, old, immediate, row * actions, clip, slope)
        more, steep = _clipped(_float(math.exp(change)), _float(1), advantage[row], clip)
        slope[taken] += steep
        whole = slope.sum()
        for a in range(actions):
            push = cost * pi[a] * (log_pi[a] + entropy) - slope[a] + pi[a] * whole
            out[a * rows + row] = share * push
        error = out[actions * rows + row] - target[row]
        out[actions * rows + row] = _float(2) * share * value_cost * error
        moved = _float(math.expm1(change))
        gain += share * (won + more)
        lost += share * error * error
        entropies += share * entropy
        divergence += share * (moved - change)
        beyond += share * (abs(moved) > clip)
    told[0] = numbers[1] * lost - gain - numbers[2] * entropies
    told[1], told[2], told[3], told[4], told[5] = -gain, lost, entropies, divergence, beyond


@njit
def _judged(out, row, rows, log_pi, pi):
    """Set log π and π of a step by its logits, and return the entropy."""
    top, total, entropy = out[row], _float(0), _float(0)
    for a in range(1, len(pi)):
        top = max(top, out[a * rows + row])
    for a in range(len(pi)):
        log_pi[a] = out[a * rows + row] - top
        pi[a] = math.exp(log_pi[a])
        total += pi[a]
    below, scale = _float(math.log(total)), _float(1) / total
    for a in range(len(pi)):
        log_pi[a] -= below
        pi[a] *= scale
        entropy -= pi[a] * log_pi[a]
    return entropy


@njit
def _all_clipped(pi, old, immediate, at, clip, slope):
    """Return Σ π_old(a) min(ρₐ Âₐ, clip(ρₐ) Âₐ), and set its derivatives by log π."""
    won = _float(0)
    for a in range(len(pi)):
        # π = π_old ρ cannot overflow; ρ of an action that was nearly impossible can.
        more, slope[a] = _clipped(pi[a], _float(math.exp(old[at + a])), immediate[at + a], clip)
        won += more
    return won


@njit
def _clipped(new, old, advantage, clip):
    """Return min(xA, clip(x, (1 − ε) x_old, (1 + ε) x_old) A), and its derivative by log x."""
    low, high = (_float(1) - clip) * old, (_float(1) + clip) * old
    reached, bounded = new * advantage, min(max(new, low), high) * advantage
    return min(reached, bounded), reached if reached <= bounded else _float(0)
