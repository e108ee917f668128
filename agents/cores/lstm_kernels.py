"""A layer of an LSTM on CPUs, compiled by Numba: whole trials forward and backward, and single steps.

    i, f, g, o = W x + U h + b,   c ← σ(f) c + σ(i) tanh g,   h ← σ(o) tanh c

Lanes are neighbouring units. A product goes on from the bias to the gates and to h without leaving the
registers; what the backward pass needs is written once. Every sum has a fixed order, which does not depend on
the number of lanes, so numbers are the same on processors with short and with long vectors. Arrays are flat,
float32 and contiguous. ``lstm_layer`` allocates them and packs weights:

    w [J, K, 4, LANES]   W and U by blocks of LANES units, J = H / LANES; K = inputs + H
    u [J, 4H, LANES]   U for the way back; its rows stand in the order [H / 8, 4, 8]
    gates [T, J, B, 4, LANES]   i, f, g, o after σ and tanh, later their gradients
"""

import numpy as np
from numba import njit

from rl2meta.kernels import kept_on_disk
from rl2meta.vectors import (
    BY_FOUR,
    BY_TWO,
    FOUR,
    LANES,
    add,
    by_four_from,
    by_two_from,
    constant,
    filled,
    fma,
    inlined,
    load,
    load_at,
    load_four,
    mul,
    plus,
    sigmoid,
    spread_at,
    store,
    store_at,
    store_four,
    sub,
    tanh,
)

_SUMMED = 8  # units whose gates are summed one after another on the way back, whatever LANES is
_BLOCK = 64  # trials whose gradients stay in the nearest cache
_float = np.float32


@inlined
def _finish(sums, had, c, h, to, gates, kept, slopes, keep):
    """What the gates get -> c and h of LANES units; with ``keep`` also the gates and tanh c."""
    i, f, g, o = sigmoid(sums[0]), sigmoid(sums[1]), tanh(sums[2]), sigmoid(sums[3])
    new = fma(f, had, mul(i, g))
    bent = tanh(new)
    store(c, to, new)
    store(h, to, mul(o, bent))
    if keep:
        store_four(gates, kept, (i, f, g, o))
        store(slopes, to, bent)


@kept_on_disk
def pack(w, u, input_bias, hidden_bias, packed, bias, inputs, units, hidden):
    """Fill ``packed`` and ``bias`` from a layer's weights; units from ``units`` to ``hidden`` are 0."""
    packed[:], bias[:] = 0, 0
    for gate in range(4):
        for unit in range(units):
            row, to = gate * units + unit, (unit // LANES * 4 + gate) * LANES + unit % LANES
            bias[to] = input_bias[row] + hidden_bias[row]
            to += unit // LANES * (inputs + hidden - 1) * 4 * LANES
            for k in range(inputs):
                packed[to + k * 4 * LANES] = w[row * inputs + k]
            for k in range(units):
                packed[to + (inputs + k) * 4 * LANES] = u[row * units + k]


@kept_on_disk
def pack_back(weight, panels, columns, units, hidden):
    """Fill the panels of a matrix [4 units, columns]; what is added to its rows and columns is 0."""
    panels[:] = 0
    for gate in range(4):
        for unit in range(units):
            to = ((unit // _SUMMED * 4 + gate) * _SUMMED + unit % _SUMMED) * LANES
            for k in range(columns):
                place = k // LANES * 4 * hidden * LANES + k % LANES
                panels[to + place] = weight[(gate * units + unit) * columns + k]


@kept_on_disk
def unpack(packed, bias, d_w, d_u, d_bias, parts, inputs, units, hidden):
    """Fill the gradients of a layer's weights with the sums over the parts of what ``backward`` found."""
    d_w[:], d_u[:], d_bias[:] = 0, 0, 0
    for part in range(parts):
        for gate in range(4):
            for unit in range(units):
                row, to = gate * units + unit, (unit // LANES * 4 + gate) * LANES + unit % LANES
                d_bias[row] += bias[part * 4 * hidden + to]
                to += (part * hidden + unit // LANES * LANES) * 4 * (
                    inputs + hidden
                ) - unit // LANES * 4 * LANES
                for k in range(inputs):
                    d_w[row * inputs + k] += packed[to + k * 4 * LANES]
                for k in range(units):
                    d_u[row * units + k] += packed[to + (inputs + k) * 4 * LANES]


@inlined
def _plus_product(sums, x, at, width, w, row, these):
    """Return sums + x w for these trials of x [B, width]."""
    for k in range(width):
        sums = plus(sums, spread_at(x, at + k, width, these), load_four(w, row + k * 4 * LANES))
    return sums


@njit
def one_step(x, x_at, w, bias, h, c, at, new_h, new_c, to, gates, slopes, keep, remembers, part, sizes):
    """Do one step of a part of the trials, some at a time; ``at`` and ``to`` say where a step begins."""
    first, last = part
    rows, inputs, hidden = sizes
    for unit in range(0, hidden, LANES):
        row, kept = (inputs + hidden) * 4 * unit, 4 * (to + rows * unit)  # gates: [J, B, 4, LANES]
        for trial in range(first, last, BY_FOUR):
            these = by_four_from(trial, last - 1)
            sums = load_at(bias, 4 * unit, 0, these, FOUR)
            sums = _plus_product(sums, x, x_at, inputs, w, row, these)
            had = filled(these, (0,), constant(_float(0)))
            if remembers:
                sums = _plus_product(sums, h, at, hidden, w, row + inputs * 4 * LANES, these)
                had = load_at(c, at + unit, hidden, these, (0,))
            for one, four, past in zip(these, sums, had):  # noqa: B905, Numba has no strict
                here, place = to + one * hidden + unit, kept + one * 4 * LANES
                _finish(four, past[0], new_c, new_h, here, gates, place, slopes, keep)


@kept_on_disk
def step(x, w, bias, h, c, new_h, new_c, part, sizes):
    """Set the state [B, H] after a step of a part of the trials from that before it.

    ``part`` is the first trial and the one behind the last, ``sizes`` are trials, inputs and units.
    """
    none = new_c  # nothing is kept
    one_step(x, 0, w, bias, h, c, 0, new_h, new_c, 0, none, none, False, True, part, sizes)


@njit
def all_forward(x, w, bias, h, c, gates, slopes, part, steps, sizes):
    """Do what ``forward`` does, for other kernels."""
    rows, inputs, hidden = sizes
    for t in range(steps):
        to = t * rows * hidden
        before, x_at = to - rows * hidden, t * rows * inputs
        one_step(x, x_at, w, bias, h, c, before, h, c, to, gates, slopes, True, t > 0, part, sizes)


@kept_on_disk
def forward(x, w, bias, h, c, gates, slopes, part, steps, sizes):
    """Set h, c, the gates and ``slopes``, which is tanh c, [T, B, H], of whole trials."""
    all_forward(x, w, bias, h, c, gates, slopes, part, steps, sizes)


@njit
def _to_sums(d_y, d_h, d_c, c, slopes, gates, at, past, later, part, sizes):
    """Put the gradients of what σ and tanh get in place of the gates of a step, and that of c in d_c."""
    one = constant(_float(1))
    rows, _, hidden = sizes
    for unit in range(0, hidden, LANES):
        for trial in range(part[0], part[1]):
            place, kept = trial * hidden + unit, 4 * (at + rows * unit + trial * LANES)
            i, f, g, o = load_four(gates, kept)
            bent, d = load(slopes, at + place), load(d_y, at + place)
            d_cell = had = constant(_float(0))
            if later:
                d, d_cell = add(d, load(d_h, place)), load(d_c, place)
            if past:
                had = load(c, at - rows * hidden + place)
            d_cell = fma(mul(d, o), sub(one, mul(bent, bent)), d_cell)
            d_i, d_f = mul(mul(d_cell, g), mul(i, sub(one, i))), mul(mul(d_cell, had), mul(f, sub(one, f)))
            d_g, d_o = mul(mul(d_cell, i), sub(one, mul(g, g))), mul(mul(d, bent), mul(o, sub(one, o)))
            store_four(gates, kept, (d_i, d_f, d_g, d_o))
            store(d_c, place, mul(d_cell, f))


@njit
def _add_outer(d_w, at, x, x_at, width, gates, g_at, trials):
    """Add Σ x [trials, width] ⊗ gradients of a block of gates [trials, 4, LANES], some rows at a time."""
    for k in range(0, width, BY_FOUR):
        these = by_four_from(k, width - 1)
        sums = load_at(d_w, at, 4 * LANES, these, FOUR)
        for trial in range(trials):
            numbers = spread_at(x, x_at + trial * width, 1, these)
            sums = plus(sums, numbers, load_four(gates, g_at + trial * 4 * LANES))
        store_at(d_w, at, 4 * LANES, these, FOUR, sums)


@njit
def _add_weights(d_w, d_bias, x, x_at, h, at, past, gates, g_at, part, sizes):
    """Add a step's share of the gradients of w and the bias."""
    rows, inputs, hidden = sizes
    one = constant(_float(1))
    for start in range(part[0], part[1], _BLOCK):
        trials = min(_BLOCK, part[1] - start)
        for unit in range(0, hidden, LANES):
            row, to = g_at + 4 * (unit * rows + start * LANES), 4 * unit * (inputs + hidden)
            _add_outer(d_w, to, x, x_at + start * inputs, inputs, gates, row, trials)
            if past:
                _add_outer(d_w, to + inputs * 4 * LANES, h, at + start * hidden, hidden, gates, row, trials)
            sums = load_at(d_bias, 4 * unit, 0, (0,), FOUR)
            for trial in range(trials):
                sums = plus(sums, (one,), load_four(gates, row + trial * 4 * LANES))
            store_at(d_bias, 4 * unit, 0, (0,), FOUR, sums)


@njit
def _back(d, to, u, width, gates, g_at, part, sizes):
    """Set d [B, width] at ``to``: a step's gradients of gates times u, one or two panels at a time."""
    panel = 4 * sizes[2] * LANES
    for column in range(0, width, 2 * LANES):
        at = 4 * sizes[2] * column
        if column + LANES < width:
            _back_some(d, to + column, (0, LANES), u, at, (0, panel), width, gates, g_at, part, sizes)
        else:
            _back_some(d, to + column, (0,), u, at, (0,), width, gates, g_at, part, sizes)


@njit
def _back_some(d, to, columns, u, at, panels, width, gates, g_at, part, sizes):
    """Set these columns of d from as many panels of u, some trials at a time."""
    rows, _, hidden = sizes
    first, last = part
    for trial in range(first, last, BY_TWO):
        these, row = by_two_from(trial, last - 1), at
        sums = filled(these, columns, constant(_float(0)))
        for unit in range(0, hidden, _SUMMED):
            start = g_at + 4 * (unit // LANES * LANES) * rows + unit % LANES
            for gate in range(start, start + 4 * LANES, LANES):
                for place in range(gate, gate + _SUMMED):
                    vectors = load_at(u, row, 0, (0,), panels)[0]
                    sums = plus(sums, spread_at(gates, place, 4 * LANES, these), vectors)
                    row += LANES
        store_at(d, to, width, these, columns, sums)


@kept_on_disk
def backward(d_y, x, h, c, gates, slopes, u, w_back, d_x, d_w, d_bias, work, part, number, steps, sizes):
    """Add the gradients of w and the bias for d_y [T, B, H], over a part of the trials; set that of x.

    d_x is [T, B, width] and ``w_back`` the panels of W, as ``u`` are those of U; both are empty if x needs no
    gradient. d_w and d_bias have an entry for each part of the trials; ``work`` is [2, B, H].
    """
    all_backward(d_y, x, h, c, gates, slopes, u, w_back, d_x, d_w, d_bias, work, part, number, steps, sizes)


@njit
def all_backward(d_y, x, h, c, gates, slopes, u, w_back, d_x, d_w, d_bias, work, part, number, steps, sizes):
    """Do what ``backward`` does, for other kernels."""
    rows, inputs, hidden = sizes
    width = len(d_x) // (steps * rows)
    d_h, d_c = work[: rows * hidden], work[rows * hidden :]
    d_w, d_bias = d_w[4 * number * hidden * (inputs + hidden) :], d_bias[4 * number * hidden :]
    for t in range(steps - 1, -1, -1):
        at = t * rows * hidden
        before, x_at = at - rows * hidden, t * rows * inputs
        _to_sums(d_y, d_h, d_c, c, slopes, gates, at, t > 0, t < steps - 1, part, sizes)
        _add_weights(d_w, d_bias, x, x_at, h, before, t > 0, gates, 4 * at, part, sizes)
        if width:
            _back(d_x, t * rows * width, w_back, width, gates, 4 * at, part, sizes)
        if t > 0:
            _back(d_h, 0, u, hidden, gates, 4 * at, part, sizes)
