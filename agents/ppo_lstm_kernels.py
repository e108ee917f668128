"""The loss of ``PPO`` for one LSTM layer with discrete actions and its gradient, in one pass, compiled by Numba.

A block of trials goes forward through all its steps, through the loss and back before the next one begins, so
what the way back needs is still in a cache; and nothing of it is given to torch. It is made of the functions
of ``lstm_kernels`` and ``ppo_kernels``, which say how arrays lie.
"""

import numpy as np
from numba import njit

from rl2meta.agents import ppo_kernels
from rl2meta.agents.cores import lstm_kernels
from rl2meta.agents.cores.lstm_kernels import all_backward, all_forward
from rl2meta.agents.ppo_kernels import judge_all
from rl2meta.kernels import kept_with

_float = np.float32


@kept_with(lstm_kernels, ppo_kernels)
def learn(x, layer, heads, known, action, every, index, found, numbers, block, part, number, sizes):
    """Add the gradients of the weights, and Σ of the loss's parts, over a part of the trials at ``index``.

    Args:
        x: inputs of all trials of the batch, [T, B, inputs].
        layer: w, its bias, and the panels of U.
        heads: rows, columns and bias.
        known: of all trials, [4, T, B].
        action: of all trials, [T, B].
        every: log π_old and immediate advantages of every action, and which are legal, [T, B, A], or empty.
        index: the trials of the minibatch.
        found: gradients of w, the bias, the heads and their bias, and sums; an entry for each part.
        numbers: of ``judge``.
        block: trials that go together.
        part: the first of ``index`` and the one behind the last.
        number: of the part.
        sizes: T, B, inputs and units.
    """
    steps, trials, inputs, hidden = sizes
    d_w, d_bias, d_heads, d_head_bias, sums = found
    old, immediate, legal = every
    most, actions = steps * block, d_head_bias.shape[1] - 1
    own_x, y, d_y = _empty(most * inputs), _empty(most * hidden), _empty(most * hidden)
    c, slopes, gates = _empty(most * hidden), _empty(most * hidden), _empty(4 * most * hidden)
    own_known, own_action, work = _empty(4 * most), np.empty(most, np.int64), _empty(2 * block * hidden)
    own_old, own_immediate = _empty(most * actions), _empty(most * actions)
    own_legal, none = np.empty(most * actions, np.bool_), own_x[:0]
    for first in range(part[0], part[1], block):
        rows = min(block, part[1] - first)
        these, size, whole, here = (
            index[first : first + rows],
            steps * rows,
            (0, rows),
            (rows, inputs, hidden),
        )
        _gather(x, own_x, these, steps, trials, inputs)
        for field in range(4):
            _gather(known[field * steps * trials :], own_known[field * size :], these, steps, trials, 1)
        _gather(action, own_action, these, steps, trials, 1)
        known_of_every = len(old) > 0, len(legal) > 0
        if known_of_every[0]:
            _gather(old, own_old, these, steps, trials, actions)
            _gather(immediate, own_immediate, these, steps, trials, actions)
        if known_of_every[1]:
            _gather(legal, own_legal, these, steps, trials, actions)
        all_forward(own_x, layer[0], layer[1], y, c, gates, slopes, whole, steps, here)
        some, masks = size * actions * known_of_every[0], size * actions * known_of_every[1]
        judge_all(
            y[: size * hidden],
            heads[0],
            heads[1],
            heads[2],
            own_known[: 4 * size],
            own_action[:size],
            own_old[:some],
            own_immediate[:some],
            own_legal[:masks],
            d_y,
            d_heads[number],
            d_head_bias[number],
            sums[number],
            numbers,
        )
        back = y, c, gates, slopes
        all_backward(
            d_y, own_x, *back, layer[2], none, none, d_w[number], d_bias[number], work, whole, 0, steps, here
        )


@njit
def _empty(size):
    return np.empty(size, _float)


@njit
def _gather(of_all, own, index, steps, trials, size):
    """Copy some trials of [T, B, size] to [T, len(index), size]."""
    for step in range(steps):
        for place in range(len(index)):
            here, there = (step * len(index) + place) * size, (step * trials + index[place]) * size
            for k in range(size):
                own[here + k] = of_all[there + k]
