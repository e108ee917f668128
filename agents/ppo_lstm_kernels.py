"""Acting, and the loss of ``PPO`` with its gradient, for one LSTM layer with discrete actions, by Numba.

A block of trials goes forward through all its steps, through the loss and back before the next one begins, so
what the way back needs is still in a cache; and nothing of it is given to torch. It is made of the functions
of ``lstm_kernels`` and ``ppo_kernels``, which say how arrays lie.
"""

import numpy as np
from numba import njit

from rl2meta.agents import ppo_kernels
from rl2meta.agents.cores import lstm_kernels
from rl2meta.agents.cores.lstm_kernels import all_backward, all_forward, one_step
from rl2meta.agents.ppo_kernels import BLOCK, forbid, judge_all, log_softmax, outputs_of, whole_exp
from rl2meta.kernels import kept_with
from rl2meta.vectors import LANES, add, constant, if_at_most, if_equal, inlined, load, mul, store

_float = np.float32


@kept_with(lstm_kernels, ppo_kernels)
def learn(x, layer, heads, known, action, every, index, found, numbers, block, part, number, sizes):
    """Add the gradients of the weights, and Σ of the loss's parts, over a part of the trials at ``index``.

    Args:
        x: inputs [T, X, inputs]; which of these X trials ``index`` means; and the gradient of the inputs,
            [T, X, wide(inputs)], which is set, or empty if nothing before the layer learns.
        layer: w, its bias, and the panels of U and, for that gradient, of W.
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
        sizes: T, B, inputs and units, which fill vectors.
    """
    steps, trials, inputs, hidden = sizes
    d_w, d_bias, d_heads, d_head_bias, sums = found
    inputs_of, place, d_inputs = x
    given = len(inputs_of) // (steps * inputs)
    width = len(d_inputs) // (steps * given)
    old, immediate, legal = every
    block = min(block, part[1] - part[0])
    most, actions = steps * block, d_head_bias.shape[1] - 1
    own_x, y, d_y = _empty(most * inputs), _empty(most * hidden), _empty(most * hidden)
    c, slopes, gates = _empty(most * hidden), _empty(most * hidden), _empty(4 * most * hidden)
    work, d_x = _empty(2 * block * hidden), _empty(most * width)
    own_known, own_action = _empty(4 * most), np.empty(most, np.int64)
    own_old, own_immediate = _empty(most * actions * (len(old) > 0)), _empty(most * actions * (len(old) > 0))
    own_legal = np.empty(most * actions * (len(legal) > 0), np.bool_)
    for first in range(part[0], part[1], block):
        rows = min(block, part[1] - first)
        these, those = index[first : first + rows], place[first : first + rows]
        size, whole, here = steps * rows, (0, rows), (rows, inputs, hidden)
        _gather(inputs_of, own_x, those, steps, given, inputs)
        for field in range(4):
            _gather(known[field * steps * trials :], own_known[field * size :], these, steps, trials, 1)
        _gather(action, own_action, these, steps, trials, 1)
        _gather(old, own_old, these, steps, trials, actions)
        _gather(immediate, own_immediate, these, steps, trials, actions)
        _gather(legal, own_legal, these, steps, trials, actions)
        all_forward(own_x, layer[0], layer[1], y, c, gates, slopes, whole, steps, here)
        judge_all(
            y[: size * hidden],
            heads[0],
            heads[1],
            heads[2],
            own_known[: 4 * size],
            own_action[:size],
            own_old[: size * actions],
            own_immediate[: size * actions],
            own_legal[: size * actions],
            d_y,
            d_heads[number],
            d_head_bias[number],
            sums[number],
            numbers,
        )
        back, panels, both = (y, c, gates, slopes), layer[2:], (d_w[number], d_bias[number])
        all_backward(d_y, own_x, *back, *panels, d_x[: size * width], *both, work, whole, 0, steps, here)
        if width:
            _scatter(d_x, d_inputs, those, steps, given, width)


@kept_with(lstm_kernels, ppo_kernels)
def act(x, layer, heads, h, c, place, legal, new_h, new_c, drawn, part, sizes):
    """Do a step of a part of the trials and draw an action, the first a with π(0) + … + π(a) > u.

    Args:
        x: inputs [B, inputs].
        layer: w and its bias.
        heads: rows, columns and bias.
        h: before the step, [B, H].
        c: before the step.
        place: u of U[0, 1), [B].
        legal: [B, A], or empty.
        new_h: set to h after the step.
        new_c: set to c after the step.
        drawn: set to the action, the most likely one, log π of the action and the value, [4, B].
        part: the first trial and the one behind the last.
        sizes: B, inputs and units.
    """
    rows, _, hidden = sizes
    outputs, width = len(heads[0]) // hidden, len(heads[2])
    z, own = np.zeros(outputs * BLOCK, _float), np.zeros(4 * BLOCK, _float)
    one_step(x, 0, layer[0], layer[1], h, c, 0, new_h, new_c, 0, new_c, new_c, False, True, part, sizes)
    for first in range(part[0], part[1], BLOCK):
        steps = min(BLOCK, part[1] - first)
        outputs_of(new_h, heads[1], heads[2], z, first, steps, hidden, width)
        forbid(legal, z, first, steps, outputs - 1)
        own[3 * BLOCK : 3 * BLOCK + steps] = place[first : first + steps]
        for step in range(0, steps, LANES):
            log_softmax(z, step, outputs - 1)
            _draw(z, own, step, outputs - 1)
        for step in range(steps):
            for field in range(3):
                drawn[field * rows + first + step] = own[field * BLOCK + step]
            drawn[3 * rows + first + step] = z[(outputs - 1) * BLOCK + step]


@njit
def _draw(z, own, step, actions):
    """Set action, most likely action and log π(action) of LANES steps in ``own`` [4, BLOCK]; its end is u."""
    zero, one = constant(_float(0)), constant(_float(1))
    total = up_to = action = likely = chosen = zero
    best = load(z, step)
    for a in range(actions):
        total = add(total, _probability(load(z, a * BLOCK + step)))
    reach = mul(load(own, 3 * BLOCK + step), total)  # u is scaled by the rounded sum, so it stays below it
    for a in range(actions):
        log_pi = load(z, a * BLOCK + step)
        up_to = add(up_to, _probability(log_pi))
        action = add(action, if_at_most(up_to, reach, one, zero))
        likely = if_at_most(log_pi, best, likely, constant(_float(a)))
        best = if_at_most(log_pi, best, best, log_pi)
    for a in range(actions):
        chosen = if_equal(action, constant(_float(a)), load(z, a * BLOCK + step), chosen)
    store(own, step, action)
    store(own, BLOCK + step, likely)
    store(own, 2 * BLOCK + step, chosen)


@inlined
def _probability(log_pi):
    """Return π, which must be 0 for what is impossible, so that it is never drawn."""
    return if_at_most(log_pi, constant(_float(-87)), constant(_float(0)), whole_exp(log_pi))


@njit
def _empty(size):
    return np.empty(size, _float)


@njit
def _scatter(own, of_all, index, steps, trials, size):
    """Copy [T, len(index), size] to some trials of [T, B, size]."""
    for step in range(steps):
        for place in range(len(index)):
            here, there = (step * len(index) + place) * size, (step * trials + index[place]) * size
            for k in range(size):
                of_all[there + k] = own[here + k]


@njit
def _gather(of_all, own, index, steps, trials, size):
    """Copy some trials of [T, B, size] to [T, len(index), size]; of what is empty, nothing."""
    for step in range(steps if len(of_all) else 0):
        for place in range(len(index)):
            here, there = (step * len(index) + place) * size, (step * trials + index[place]) * size
            for k in range(size):
                own[here + k] = of_all[there + k]
