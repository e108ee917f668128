"""A chain of linear layers with tanh between them, for each task with its own weights, compiled by Numba.

    z_l = W_l h_{l-1} + b_l,   h_l = tanh z_l,   h_0 = x,   y = z_L

There are four functions of the weights θ: y itself; Jᵀg, the gradient of ⟨g, y⟩; J v; and the curvature
H_g v, the derivative of Jᵀg in direction v, with g fixed (Pearlmutter 1994):

    e_L = g,   ė_L = 0                                (another ė_L adds Jᵀė_L)
    ż_l = V_l h_{l-1} + c_l + W_l ḣ_{l-1}             ḣ_l = (1 − h_l²) ż_l
    d_l = W_{l+1}ᵀ e_{l+1}                            e_l = (1 − h_l²) d_l
    ḋ_l = W_{l+1}ᵀ ė_{l+1} + V_{l+1}ᵀ e_{l+1}         ė_l = (1 − h_l²) ḋ_l − 2 h_l ḣ_l d_l
    ∂/∂W_l: e_l h_{l-1}ᵀ, and its derivative ė_l h_{l-1}ᵀ + e_l ḣ_{l-1}ᵀ

A block of rows passes through all layers while it is in the nearest caches. Lanes are neighbouring units;
every sum has a fixed order, whatever their number is. Arrays are flat, float32 and contiguous. With n_l
units, and P_l for n_l rounded up to whole vectors:

    theta, v, and gradients [N, Σ (n_{l-1} + 1) n_l]   W_1 [n_1, n_0], b_1, W_2, ...
    x, g [N, rows, n_0], [N, rows, n_L]
    y, kept [N, rows, P_L]; [N, rows, P_l] for h_1, h_2, ... one after another
    packed [N, ·]   of each task: down, (b_l, W_lᵀ) [1 + n_{l-1}, P_l], and up, W_l [n_l, P_{l-1}], for all l
"""

import numpy as np
from numba import njit

from rl2meta.kernels import kept_on_disk
from rl2meta.vectors import (
    BY_TWO,
    LANES,
    add,
    by_two_from,
    constant,
    fma,
    inlined,
    load,
    load_at,
    mul,
    plus,
    spread_at,
    store,
    store_at,
    sub,
    tanh,
    wide,
)

_BLOCK = 64  # rows that pass through all layers together
_float = np.float32


_wide = inlined(wide)


@njit
def _places(sizes, all_rows):
    """Return where each layer begins in ``down``, ``up`` and ``kept``, [L + 2, 3], and where they end."""
    places = np.zeros((len(sizes) + 1, 3), np.int64)
    for layer in range(1, len(sizes)):
        inputs, units = sizes[layer - 1], sizes[layer]
        places[layer + 1, 0] = places[layer, 0] + (inputs + 1) * _wide(units)
        places[layer + 1, 1] = places[layer, 1] + units * _wide(inputs)
        places[layer + 1, 2] = places[layer, 2] + all_rows * _wide(units)
    return places


@njit
def _pack(theta, at, sizes, places, packed, to):
    """Set ``down`` and ``up`` of a task, from ``to`` on; the padding is not written, and must hold zeros."""
    for layer in range(1, len(sizes)):
        inputs, units = sizes[layer - 1], sizes[layer]
        width, back = _wide(units), _wide(inputs)
        first, row = to + places[layer, 0], to + places[-1, 0] + places[layer, 1]
        for unit in range(units):
            packed[first + unit] = theta[at + units * inputs + unit]
        for k in range(inputs):
            for unit in range(units):
                packed[first + (k + 1) * width + unit] = theta[at + unit * inputs + k]
        for unit in range(units):
            for k in range(inputs):
                packed[row + unit * back + k] = theta[at + unit * inputs + k]
        at += units * (inputs + 1)


@njit
def _both(packed, task, places):
    """Return ``down`` and ``up`` of a task."""
    numbers, most = places[-1, 0], places[-1, 0] + places[-1, 1]
    return packed[task * most : task * most + numbers], packed[task * most + numbers : (task + 1) * most]


@njit
def _unpack(down, sizes, places, theta, at):
    """Set the gradient of a task's weights from sums in the order of ``down``."""
    for layer in range(1, len(sizes)):
        inputs, units = sizes[layer - 1], sizes[layer]
        width, first = _wide(units), places[layer, 0]
        for unit in range(units):
            theta[at + units * inputs + unit] = down[first + unit]
            for k in range(inputs):
                theta[at + unit * inputs + k] = down[first + (k + 1) * width + unit]
        at += units * (inputs + 1)


@njit
def _product(x, x_at, apart, inputs, w, w_at, begin, begin_at, begin_apart, to, to_at, width, rows):
    """Set ``to`` [rows, width] to begin + x w, with x [rows, inputs], w [inputs, width].

    ``apart`` is the distance of two rows of x, ``begin_apart`` that of ``begin``: 0 if all have the same.
    """
    for column in range(0, width, 2 * LANES):
        of_x, of_w, of_to = (x, x_at, apart, inputs), (w, w_at + column), (to, to_at + column)
        start = begin, begin_at + column, begin_apart
        if column + LANES < width:
            _some_columns(of_x, of_w, start, of_to, (0, LANES), width, rows)
        else:
            _some_columns(of_x, of_w, start, of_to, (0,), width, rows)


@njit
def _some_columns(of_x, of_w, start, of_to, columns, width, rows):
    """Set these columns of a product, some rows at a time."""
    (x, x_at, apart, inputs), (w, w_at) = of_x, of_w
    (begin, begin_at, begin_apart), (to, to_at) = start, of_to
    for row in range(0, rows, BY_TWO):
        these = by_two_from(row, rows - 1)
        sums = load_at(begin, begin_at, begin_apart, these, columns)
        for k in range(inputs):
            vectors = load_at(w, w_at + k * width, 0, (0,), columns)[0]
            sums = plus(sums, spread_at(x, x_at + k, apart, these), vectors)
        store_at(to, to_at, width, these, columns, sums)


@njit
def _add_outer(a, a_at, apart, inputs, e, width, rows, to, to_at):
    """Add aᵀ e to ``to`` [inputs, width], with a [rows, inputs] and e [rows, width]."""
    for column in range(0, width, 2 * LANES):
        of_a, of_e, of_to = (a, a_at, apart, inputs), (e, column, width), (to, to_at + column)
        if column + LANES < width:
            _add_some_columns(of_a, of_e, of_to, (0, LANES), rows)
        else:
            _add_some_columns(of_a, of_e, of_to, (0,), rows)


@njit
def _add_some_columns(of_a, of_e, of_to, columns, rows):
    """Add these columns of an outer product, some inputs at a time."""
    (a, a_at, apart, inputs), (e, e_at, width), (to, to_at) = of_a, of_e, of_to
    for k in range(0, inputs, BY_TWO):
        these = by_two_from(k, inputs - 1)
        sums = load_at(to, to_at, width, these, columns)
        for row in range(rows):
            vectors = load_at(e, e_at + row * width, 0, (0,), columns)[0]
            sums = plus(sums, spread_at(a, a_at + row * apart, 1, these), vectors)
        store_at(to, to_at, width, these, columns, sums)


@njit
def _add_rows(e, width, rows, to, to_at):
    """Add the sum over the rows of e [rows, width] to ``to`` [width]."""
    for column in range(0, width, LANES):
        total = load(to, to_at + column)
        for row in range(rows):
            total = add(total, load(e, row * width + column))
        store(to, to_at + column, total)


@njit
def _bend(z, at, numbers):
    """Put tanh z in place of z."""
    for place in range(at, at + numbers, LANES):
        store(z, place, tanh(load(z, place)))


@njit
def _slope(d, d_at, h, h_at, numbers):
    """Multiply d by 1 − h²."""
    one = constant(_float(1))
    for place in range(0, numbers, LANES):
        bent = load(h, h_at + place)
        store(d, d_at + place, mul(load(d, d_at + place), sub(one, mul(bent, bent))))


@njit
def _curve(d_dot, d, h, h_at, h_dot, h_dot_at, numbers):
    """Put ė = (1 − h²) ḋ − 2 h ḣ d in place of ḋ, and e = (1 − h²) d in place of d."""
    one, minus_two = constant(_float(1)), constant(_float(-2))
    for place in range(0, numbers, LANES):
        bent, gradient = load(h, h_at + place), load(d, place)
        slope = sub(one, mul(bent, bent))
        bow = mul(mul(minus_two, bent), mul(load(h_dot, h_dot_at + place), gradient))
        store(d_dot, place, fma(load(d_dot, place), slope, bow))
        store(d, place, mul(gradient, slope))


@njit
def _widen(g, at, units, e, width, rows):
    """Set e [rows, width] to g [rows, units] and zeros."""
    for row in range(rows):
        for unit in range(width):
            e[row * width + unit] = g[at + row * units + unit] if unit < units else _float(0)


@njit
def _hidden(sizes):
    """Return how many numbers a block of rows has in all hidden layers."""
    numbers = 0
    for layer in range(1, len(sizes) - 1):
        numbers += _BLOCK * _wide(sizes[layer])
    return numbers


@njit
def _widest(sizes):
    """Return the width of the widest layer."""
    widest = 0
    for layer in range(1, len(sizes)):
        widest = max(widest, _wide(sizes[layer]))
    return widest


@njit
def _zeros(count, length):
    """Return ``count`` arrays of zeros."""
    return [np.zeros(length, _float) for _ in range(count)]


@njit
def _run(x, y, kept, at, down, sizes, places, first, rows):
    """Set y and h of a block of rows, which begins at row ``at`` of what is kept."""
    last = len(sizes) - 1
    source, source_at, apart = x, first * sizes[0], sizes[0]
    for layer in range(1, last + 1):
        width, w = _wide(sizes[layer]), places[layer, 0]
        to, to_at = kept, places[layer, 2] + at * width
        if layer == last:
            to, to_at = y, first * width
        row = w + width  # behind the bias
        _product(source, source_at, apart, sizes[layer - 1], down, row, down, w, 0, to, to_at, width, rows)
        if layer < last:
            _bend(to, to_at, rows * width)
        source, source_at, apart = to, to_at, width


@njit
def _run_tangent(x, y_dot, kept, h_dot, down, v_down, sizes, places, first, rows):
    """Set ẏ of a block of rows, and ḣ of every hidden layer, [_BLOCK, P_l] one after another."""
    last, dot_at, at = len(sizes) - 1, 0, 0
    source, source_at, apart = x, first * sizes[0], sizes[0]
    for layer in range(1, last + 1):
        inputs, width, w = sizes[layer - 1], _wide(sizes[layer]), places[layer, 0]
        to, to_at = h_dot, at
        if layer == last:
            to, to_at = y_dot, first * width
        row = w + width
        _product(source, source_at, apart, inputs, v_down, row, v_down, w, 0, to, to_at, width, rows)
        if layer > 1:
            _product(h_dot, dot_at, apart, inputs, down, row, to, to_at, width, to, to_at, width, rows)
        source, source_at, apart, dot_at = kept, places[layer, 2] + first * width, width, at
        if layer < last:
            _slope(h_dot, at, kept, source_at, rows * width)
            at += _BLOCK * width


@njit
def _run_back(x, kept, up, sizes, places, first, rows, e, d, sums, zeros):
    """Add Jᵀg of a block of rows to ``sums``; e holds g, and is written over as d is."""
    for layer in range(len(sizes) - 1, 0, -1):
        inputs, width, w = sizes[layer - 1], _wide(sizes[layer]), places[layer, 0]
        _add_rows(e, width, rows, sums, w)
        if layer == 1:
            _add_outer(x, first * inputs, inputs, inputs, e, width, rows, sums, w + width)
        else:
            before = _wide(inputs)
            h_at = places[layer - 1, 2] + first * before
            _add_outer(kept, h_at, before, inputs, e, width, rows, sums, w + width)
            _product(e, 0, width, sizes[layer], up, places[layer, 1], zeros, 0, 0, d, 0, before, rows)
            _slope(d, 0, kept, h_at, rows * before)
            e, d = d, e


@njit
def _run_curved(x, kept, h_dot, up, v_up, sizes, places, first, rows, e, d, e_dot, d_dot, sums, zeros):
    """Add H_g v + Jᵀė_L of a block of rows to ``sums``; e holds g and ``e_dot`` ė_L, all are written over."""
    last, dot_at = len(sizes) - 1, len(h_dot)
    for layer in range(last, 0, -1):
        inputs, width, w = sizes[layer - 1], _wide(sizes[layer]), places[layer, 0]
        _add_rows(e_dot, width, rows, sums, w)
        if layer == 1:
            _add_outer(x, first * inputs, inputs, inputs, e_dot, width, rows, sums, w + width)
        else:
            before, u, units = _wide(inputs), places[layer, 1], sizes[layer]
            h_at = places[layer - 1, 2] + first * before
            dot_at -= _BLOCK * before
            _add_outer(kept, h_at, before, inputs, e_dot, width, rows, sums, w + width)
            _add_outer(h_dot, dot_at, before, inputs, e, width, rows, sums, w + width)
            _product(e, 0, width, units, up, u, zeros, 0, 0, d, 0, before, rows)
            _product(e, 0, width, units, v_up, u, zeros, 0, 0, d_dot, 0, before, rows)
            _product(e_dot, 0, width, units, up, u, d_dot, 0, before, d_dot, 0, before, rows)
            _curve(d_dot, d, kept, h_at, h_dot, dot_at, rows * before)
            e, d, e_dot, d_dot = d, e, d_dot, e_dot


@kept_on_disk
def packed_size(sizes):
    """Return how many numbers ``down`` and ``up`` of a task have together."""
    return _places(sizes, 0)[-1].sum()


@kept_on_disk
def pack(theta, sizes, packed, tasks):
    """Set ``packed``, which holds zeros, to ``down`` and ``up`` of each task in turn."""
    places = _places(sizes, 0)
    for task in range(tasks):
        _pack(theta, len(theta) // tasks * task, sizes, places, packed, len(packed) // tasks * task)


@kept_on_disk
def forward(packed, x, sizes, y, kept, tasks, rows, part):
    """Set y and h for a part of the tasks: from the first to the one before the second number."""
    places = _places(sizes, tasks * rows)
    for task in range(part[0], part[1]):
        down, _ = _both(packed, task, places)
        for start in range(0, rows, _BLOCK):
            first = task * rows + start
            _run(x, y, kept, first, down, sizes, places, first, min(_BLOCK, rows - start))


@kept_on_disk
def outputs(packed, x, sizes, y, tasks, rows, part):
    """Set y as ``forward`` does; h of a block is written over by the next, and does not leave the cache."""
    places = _places(sizes, _BLOCK)
    kept = np.empty(places[-1, 2], _float)
    for task in range(part[0], part[1]):
        down, _ = _both(packed, task, places)
        for start in range(0, rows, _BLOCK):
            _run(x, y, kept, 0, down, sizes, places, task * rows + start, min(_BLOCK, rows - start))


@kept_on_disk
def tangent(packed, x, kept, v, sizes, y_dot, tasks, rows, part):
    """Set ``y_dot`` to J v for a part of the tasks."""
    places, numbers = _places(sizes, tasks * rows), len(v) // tasks
    v_packed, h_dot = np.zeros(len(packed) // tasks, _float), np.empty(_hidden(sizes), _float)
    v_down, _ = _both(v_packed, 0, places)
    for task in range(part[0], part[1]):
        down, _ = _both(packed, task, places)
        _pack(v, task * numbers, sizes, places, v_packed, 0)
        for start in range(0, rows, _BLOCK):
            first, some = task * rows + start, min(_BLOCK, rows - start)
            _run_tangent(x, y_dot, kept, h_dot, down, v_down, sizes, places, first, some)


@kept_on_disk
def back(packed, g, x, kept, sizes, found, tasks, rows, part):
    """Set ``found`` to Jᵀg for a part of the tasks."""
    places, numbers, units = _places(sizes, tasks * rows), len(found) // tasks, sizes[-1]
    sums = np.empty(places[-1, 0], _float)
    e, d, zeros = _zeros(3, _BLOCK * _widest(sizes))
    for task in range(part[0], part[1]):
        _, up = _both(packed, task, places)
        sums[:] = 0
        for start in range(0, rows, _BLOCK):
            first, some = task * rows + start, min(_BLOCK, rows - start)
            _widen(g, first * units, units, e, _wide(units), some)
            _run_back(x, kept, up, sizes, places, first, some, e, d, sums, zeros)
        _unpack(sums, sizes, places, found, task * numbers)


@kept_on_disk
def curved(packed, g, x, kept, v, g_dot, sizes, y_dot, found, tasks, rows, part):
    """Set ``y_dot`` to J v and ``found`` to H_g v + Jᵀġ for a part of the tasks; an empty ġ is 0."""
    places, numbers, units = _places(sizes, tasks * rows), len(found) // tasks, sizes[-1]
    v_packed, sums = np.zeros(len(packed) // tasks, _float), np.empty(places[-1, 0], _float)
    e, d, e_dot, d_dot, zeros = _zeros(5, _BLOCK * _widest(sizes))
    h_dot, width = np.empty(_hidden(sizes), _float), _wide(units)
    v_down, v_up = _both(v_packed, 0, places)
    for task in range(part[0], part[1]):
        down, up = _both(packed, task, places)
        _pack(v, task * numbers, sizes, places, v_packed, 0)
        sums[:] = 0
        for start in range(0, rows, _BLOCK):
            first, some = task * rows + start, min(_BLOCK, rows - start)
            _run_tangent(x, y_dot, kept, h_dot, down, v_down, sizes, places, first, some)
            _widen(g, first * units, units, e, width, some)
            e_dot[: some * width] = 0
            if len(g_dot):
                _widen(g_dot, first * units, units, e_dot, width, some)
            _run_curved(x, kept, h_dot, up, v_up, sizes, places, first, some, e, d, e_dot, d_dot, sums, zeros)
        _unpack(sums, sizes, places, found, task * numbers)
