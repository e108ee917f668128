"""A layer of an LSTM on CPUs, compiled by Numba: whole trials forward and backward, and single steps.

    i, f, g, o = W x + U h + b,   c ← σ(f) c + σ(i) tanh g,   h ← σ(o) tanh c

Lanes are neighbouring units. A product goes on from the bias to the gates and to h without leaving the
registers; what the backward pass needs is written once. Every sum has a fixed order, which does not depend on
the number of lanes. Arrays are flat, float32 and contiguous. ``lstm_layer`` allocates them and packs weights:

    w [J, K, 4, LANES]   W and U by blocks of LANES units, J = H / LANES; K = inputs + H
    u [H / (2 LANES), 4H, 2 LANES]   U for the way back; its rows stand in the order [J, 4, LANES]
    gates [T, J, B, 4, LANES]   i, f, g, o after σ and tanh, later their gradients

All is in this one file, because Numba's cache looks only at the file of a kernel.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

LANES = 8
"""Numbers in a vector. The compiler splits it where a processor has shorter ones."""
_BLOCK = 64  # trials whose gradients stay in the nearest cache
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_float = np.float32
_ROUND = _float(1.5 * 2**23)  # adding it rounds to whole numbers


class Vector(types.Type):  # type: ignore[misc]
    """LANES numbers of float32, in Numba's types."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


_V = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def kept_on_disk(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, for a call without Python's lock; keep the result on disk if possible."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # there is no folder for it
        return njit(**options)(function)  # type: ignore[no-any-return]


_inlined = njit(inline="always")


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _in_all_lanes(builder: Any, number: Any) -> Any:
    none = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(none, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, none, ir.Constant(_WORDS, [0] * LANES))


@intrinsic  # type: ignore[untyped-decorator]
def load(_: Any, array: Any, index: Any) -> Any:
    """Return array[index : index + LANES]."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _place(context, builder, signature.args[0], *given)
        return builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=4)

    return _V(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(_: Any, array: Any, index: Any, vector: Any) -> Any:
    """Set array[index : index + LANES]."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _place(context, builder, signature.args[0], *given[:2])
        builder.store(given[2], builder.bitcast(place, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _V), generate


@intrinsic  # type: ignore[untyped-decorator]
def spread(_: Any, array: Any, index: Any) -> Any:
    """Return array[index] in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _place(context, builder, signature.args[0], *given)
        return _in_all_lanes(builder, builder.load(place, align=4))

    return _V(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def constant(_: Any, number: Any) -> Any:
    """Return a number in all lanes."""
    return _V(types.float32), lambda context, builder, signature, given: _in_all_lanes(builder, given[0])


@intrinsic  # type: ignore[untyped-decorator]
def fma(_: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x y + z, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        name = f"llvm.fma.v{LANES}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)

    return _V(_V, _V, _V), generate


def _of_two(name: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def operation(_: Any, x: Any, y: Any) -> Any:
        return _V(_V, _V), lambda context, builder, signature, given: getattr(builder, name)(*given)

    return operation


add, sub, mul, div = map(_of_two, ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic  # type: ignore[untyped-decorator]
def within(_: Any, x: Any, low: Any, high: Any) -> Any:
    """Return x, or the bound that it exceeds; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, low, high = given
        x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
        return builder.select(builder.fcmp_ordered("<", x, low), low, x)

    return _V(_V, _V, _V), generate


@intrinsic  # type: ignore[untyped-decorator]
def times_power(_: Any, x: Any, rounded: Any) -> Any:
    """Return x 2ⁿ for ``rounded`` = n + _ROUND, whose last bits hold n."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, rounded = (builder.bitcast(each, _WORDS) for each in given)
        exponent = builder.shl(rounded, ir.Constant(_WORDS, [23] * LANES))
        return builder.bitcast(builder.add(x, exponent), _VECTOR)

    return _V(_V, _V), generate


@_inlined
def exp(x):  # type: ignore[no-untyped-def]
    """Return eˣ = 2ⁿ eʳ, |r| <= ln 2 / 2, for |x| <= 87; a polynomial of Cephes (expf.c)."""
    x = within(x, constant(_float(-87)), constant(_float(87)))
    rounded = fma(x, constant(_float(1.44269504088896341)), constant(_ROUND))
    n = sub(rounded, constant(_ROUND))
    r = fma(n, constant(_float(-0.693359375)), x)  # ln 2 in two parts
    r = fma(n, constant(_float(2.12194440e-4)), r)
    y = fma(constant(_float(1.9875691500e-4)), r, constant(_float(1.3981999507e-3)))
    y = fma(y, r, constant(_float(8.3334519073e-3)))
    y = fma(y, r, constant(_float(4.1665795894e-2)))
    y = fma(y, r, constant(_float(1.6666665459e-1)))
    y = fma(y, r, constant(_float(5.0000001201e-1)))
    return times_power(fma(y, mul(r, r), add(r, constant(_float(1)))), rounded)


@_inlined
def sigmoid(x):  # type: ignore[no-untyped-def]
    """Return σ(x)."""
    one = constant(_float(1))
    return div(one, add(one, exp(sub(constant(_float(0)), x))))


@_inlined
def tanh(x):  # type: ignore[no-untyped-def]
    """Return 2 σ(2x) − 1."""
    return fma(constant(_float(2)), sigmoid(add(x, x)), constant(_float(-1)))


@_inlined
def _finish(i, f, g, o, had, c, h, to, gates, kept, slopes, keep):  # type: ignore[no-untyped-def]
    """What the gates get -> c and h of LANES units; with ``keep`` also the gates and tanh c."""
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    new = fma(f, had, mul(i, g))
    bent = tanh(new)
    store(c, to, new)
    store(h, to, mul(o, bent))
    if keep:
        store(gates, kept, i)
        store(gates, kept + LANES, f)
        store(gates, kept + 2 * LANES, g)
        store(gates, kept + 3 * LANES, o)
        store(slopes, to, bent)


@kept_on_disk
def pack(w, u, input_bias, hidden_bias, packed, bias, inputs, units, hidden):  # type: ignore[no-untyped-def]
    """Fill ``packed`` and ``bias`` from a layer's weights; units from ``units`` to ``hidden`` are 0."""
    packed[:], bias[:] = 0, 0
    for gate in range(4):
        for unit in range(units):
            row = gate * units + unit
            to = (unit // LANES * (inputs + hidden) * 4 + gate) * LANES + unit % LANES
            for k in range(inputs):
                packed[to + k * 4 * LANES] = w[row * inputs + k]
            for k in range(units):
                packed[to + (inputs + k) * 4 * LANES] = u[row * units + k]
            bias[(unit // LANES * 4 + gate) * LANES + unit % LANES] = input_bias[row] + hidden_bias[row]


@kept_on_disk
def pack_back(weight, panels, columns, units, hidden):  # type: ignore[no-untyped-def]
    """Fill the panels of a matrix [4 units, columns]; what is added to its rows and columns is 0."""
    panels[:] = 0
    for gate in range(4):
        for unit in range(units):
            to = ((unit // LANES * 4 + gate) * LANES + unit % LANES) * 2 * LANES
            for k in range(columns):
                place = k // (2 * LANES) * 4 * hidden * 2 * LANES + k % (2 * LANES)
                panels[to + place] = weight[(gate * units + unit) * columns + k]


@kept_on_disk
def unpack(packed, bias, d_w, d_u, d_bias, parts, inputs, units, hidden):  # type: ignore[no-untyped-def]
    """Fill the gradients of a layer's weights with the sums over the parts of what ``backward`` found."""
    d_w[:], d_u[:], d_bias[:] = 0, 0, 0
    for part in range(parts):
        start, bias_start = part * 4 * hidden * (inputs + hidden), part * 4 * hidden
        for gate in range(4):
            for unit in range(units):
                row = gate * units + unit
                to = start + (unit // LANES * (inputs + hidden) * 4 + gate) * LANES + unit % LANES
                for k in range(inputs):
                    d_w[row * inputs + k] += packed[to + k * 4 * LANES]
                for k in range(units):
                    d_u[row * units + k] += packed[to + (inputs + k) * 4 * LANES]
                d_bias[row] += bias[bias_start + (unit // LANES * 4 + gate) * LANES + unit % LANES]


@njit  # type: ignore[untyped-decorator]
def _step(  # type: ignore[no-untyped-def]
    x, x_at, w, bias, h, c, at, new_h, new_c, to, gates, slopes, keep, remembers, first, last, rows, inputs, hidden
):
    """One step of the trials first to last − 1, two at a time; ``at`` and ``to`` say where a step begins."""
    for block in range(hidden // LANES):
        unit = block * LANES
        start = 4 * unit
        for one in range(first, last, 2):
            two = min(one + 1, last - 1)
            i1 = i2 = load(bias, start)
            f1 = f2 = load(bias, start + LANES)
            g1 = g2 = load(bias, start + 2 * LANES)
            o1 = o2 = load(bias, start + 3 * LANES)
            row = (inputs + hidden) * start
            here, there = x_at + one * inputs, x_at + two * inputs
            for k in range(inputs):
                a, b = spread(x, here + k), spread(x, there + k)
                i1, i2 = fma(a, load(w, row), i1), fma(b, load(w, row), i2)
                f1, f2 = fma(a, load(w, row + LANES), f1), fma(b, load(w, row + LANES), f2)
                g1, g2 = fma(a, load(w, row + 2 * LANES), g1), fma(b, load(w, row + 2 * LANES), g2)
                o1, o2 = fma(a, load(w, row + 3 * LANES), o1), fma(b, load(w, row + 3 * LANES), o2)
                row += 4 * LANES
            c1 = c2 = constant(_float(0))
            here, there = at + one * hidden, at + two * hidden
            if remembers:
                for k in range(hidden):
                    a, b = spread(h, here + k), spread(h, there + k)
                    i1, i2 = fma(a, load(w, row), i1), fma(b, load(w, row), i2)
                    f1, f2 = fma(a, load(w, row + LANES), f1), fma(b, load(w, row + LANES), f2)
                    g1, g2 = fma(a, load(w, row + 2 * LANES), g1), fma(b, load(w, row + 2 * LANES), g2)
                    o1, o2 = fma(a, load(w, row + 3 * LANES), o1), fma(b, load(w, row + 3 * LANES), o2)
                    row += 4 * LANES
                c1, c2 = load(c, here + unit), load(c, there + unit)
            here, there = to + one * hidden + unit, to + two * hidden + unit
            kept = 4 * (to + rows * unit)  # gates stand by blocks, [J, B, 4, LANES]
            _finish(i1, f1, g1, o1, c1, new_c, new_h, here, gates, kept + one * 4 * LANES, slopes, keep)
            _finish(i2, f2, g2, o2, c2, new_c, new_h, there, gates, kept + two * 4 * LANES, slopes, keep)


@kept_on_disk
def step(x, w, bias, h, c, new_h, new_c, first, last, rows, inputs, hidden):  # type: ignore[no-untyped-def]
    """Set the state [B, H] after a step, of the trials first to last − 1, from that before it."""
    none = new_c  # nothing is kept
    sizes = first, last, rows, inputs, hidden
    _step(x, 0, w, bias, h, c, 0, new_h, new_c, 0, none, none, False, True, *sizes)


@kept_on_disk
def forward(x, w, bias, h, c, gates, slopes, first, last, steps, rows, inputs, hidden):  # type: ignore[no-untyped-def]
    """Set h, c, the gates and ``slopes``, which is tanh c, [T, B, H], of whole trials first to last − 1."""
    sizes = first, last, rows, inputs, hidden
    for t in range(steps):
        to = t * rows * hidden
        before = to - rows * hidden
        _step(
            x, t * rows * inputs, w, bias, h, c, before, h, c, to, gates, slopes, True, t > 0, *sizes
        )


@njit  # type: ignore[untyped-decorator]
def _before_gates(d_y, d_h, d_c, c, slopes, gates, at, past, later, first, last, rows, hidden):  # type: ignore[no-untyped-def]
    """Put the gradient of what σ and tanh got in place of the gates of a step; keep that of c in d_c."""
    one = constant(_float(1))
    for block in range(hidden // LANES):
        for trial in range(first, last):
            kept = 4 * (at + rows * block * LANES + trial * LANES)
            i, f = load(gates, kept), load(gates, kept + LANES)
            g, o = load(gates, kept + 2 * LANES), load(gates, kept + 3 * LANES)
            place = trial * hidden + block * LANES
            bent, d = load(slopes, at + place), load(d_y, at + place)
            d_cell = had = constant(_float(0))
            if later:
                d = add(d, load(d_h, place))
                d_cell = load(d_c, place)
            if past:
                had = load(c, at - rows * hidden + place)
            d_cell = fma(mul(d, o), sub(one, mul(bent, bent)), d_cell)
            store(gates, kept, mul(mul(d_cell, g), mul(i, sub(one, i))))
            store(gates, kept + LANES, mul(mul(d_cell, had), mul(f, sub(one, f))))
            store(gates, kept + 2 * LANES, mul(mul(d_cell, i), sub(one, mul(g, g))))
            store(gates, kept + 3 * LANES, mul(mul(d, bent), mul(o, sub(one, o))))
            store(d_c, place, mul(d_cell, f))


@njit  # type: ignore[untyped-decorator]
def _add_outer(d_w, at, x, x_at, width, gates, g_at, trials):  # type: ignore[no-untyped-def]
    """Add Σ x [trials, width] ⊗ gradients of a block of gates [trials, 4, LANES], two rows at a time."""
    for k in range(0, width, 2):
        next_k = min(k + 1, width - 1)
        a, b = at + k * 4 * LANES, at + next_k * 4 * LANES
        i1, f1, g1, o1 = load(d_w, a), load(d_w, a + LANES), load(d_w, a + 2 * LANES), load(d_w, a + 3 * LANES)
        i2, f2, g2, o2 = load(d_w, b), load(d_w, b + LANES), load(d_w, b + 2 * LANES), load(d_w, b + 3 * LANES)
        here, there, row = x_at + k, x_at + next_k, g_at
        for _ in range(trials):
            p, q = spread(x, here), spread(x, there)
            i1, i2 = fma(p, load(gates, row), i1), fma(q, load(gates, row), i2)
            f1, f2 = fma(p, load(gates, row + LANES), f1), fma(q, load(gates, row + LANES), f2)
            g1, g2 = fma(p, load(gates, row + 2 * LANES), g1), fma(q, load(gates, row + 2 * LANES), g2)
            o1, o2 = fma(p, load(gates, row + 3 * LANES), o1), fma(q, load(gates, row + 3 * LANES), o2)
            here, there, row = here + width, there + width, row + 4 * LANES
        store(d_w, a, i1)
        store(d_w, a + LANES, f1)
        store(d_w, a + 2 * LANES, g1)
        store(d_w, a + 3 * LANES, o1)
        store(d_w, b, i2)
        store(d_w, b + LANES, f2)
        store(d_w, b + 2 * LANES, g2)
        store(d_w, b + 3 * LANES, o2)


@njit  # type: ignore[untyped-decorator]
def _add_weights(d_w, d_bias, x, x_at, h, at, past, gates, g_at, first, last, rows, inputs, hidden):  # type: ignore[no-untyped-def]
    """Add a step's share of the gradients of w and the bias."""
    for start in range(first, last, _BLOCK):
        trials = min(_BLOCK, last - start)
        for block in range(hidden // LANES):
            row = g_at + (block * rows + start) * 4 * LANES
            to = block * (inputs + hidden) * 4 * LANES
            _add_outer(d_w, to, x, x_at + start * inputs, inputs, gates, row, trials)
            if past:
                _add_outer(d_w, to + inputs * 4 * LANES, h, at + start * hidden, hidden, gates, row, trials)
            for gate in range(0, 4 * LANES, LANES):
                total = load(d_bias, 4 * block * LANES + gate)
                for trial in range(trials):
                    total = add(total, load(gates, row + trial * 4 * LANES + gate))
                store(d_bias, 4 * block * LANES + gate, total)


@njit  # type: ignore[untyped-decorator]
def _back(d, to, u, width, gates, g_at, first, last, rows, hidden):  # type: ignore[no-untyped-def]
    """Set d [B, width] at ``to``: the gradients of the gates of a step times u, four trials at a time."""
    for panel in range(width // (2 * LANES)):
        for t1 in range(first, last, 4):
            t2, t3, t4 = min(t1 + 1, last - 1), min(t1 + 2, last - 1), min(t1 + 3, last - 1)
            a1 = a2 = a3 = a4 = b1 = b2 = b3 = b4 = constant(_float(0))
            row = panel * 4 * hidden * 2 * LANES
            for block in range(hidden // LANES):
                start = g_at + block * rows * 4 * LANES
                for gate in range(start, start + 4 * LANES):
                    left, right = load(u, row), load(u, row + LANES)
                    p, q = spread(gates, gate + t1 * 4 * LANES), spread(gates, gate + t2 * 4 * LANES)
                    r, s = spread(gates, gate + t3 * 4 * LANES), spread(gates, gate + t4 * 4 * LANES)
                    a1, a2, a3, a4 = fma(p, left, a1), fma(q, left, a2), fma(r, left, a3), fma(s, left, a4)
                    b1, b2, b3, b4 = fma(p, right, b1), fma(q, right, b2), fma(r, right, b3), fma(s, right, b4)
                    row += 2 * LANES
            unit = to + panel * 2 * LANES
            store(d, unit + t1 * width, a1)
            store(d, unit + t2 * width, a2)
            store(d, unit + t3 * width, a3)
            store(d, unit + t4 * width, a4)
            store(d, unit + t1 * width + LANES, b1)
            store(d, unit + t2 * width + LANES, b2)
            store(d, unit + t3 * width + LANES, b3)
            store(d, unit + t4 * width + LANES, b4)


@kept_on_disk
def backward(  # type: ignore[no-untyped-def]
    d_y, x, h, c, gates, slopes, u, w_back, d_x, d_w, d_bias, work, first, last, part, steps, rows, inputs, hidden
):
    """Add the gradients of w and the bias for d_y [T, B, H], over trials first to last − 1; set that of x.

    d_x is [T, B, width] and ``w_back`` the panels of W, as ``u`` are those of U; both are empty if x needs none.
    d_w and d_bias have an entry for each part of the trials; ``work`` is [2, B, H].
    """
    width = len(d_x) // (steps * rows)
    d_h, d_c = work[: rows * hidden], work[rows * hidden :]
    d_w, d_bias = d_w[4 * part * hidden * (inputs + hidden) :], d_bias[4 * part * hidden :]
    for t in range(steps - 1, -1, -1):
        at, g_at = t * rows * hidden, 4 * t * rows * hidden
        before = at - rows * hidden
        _before_gates(d_y, d_h, d_c, c, slopes, gates, at, t > 0, t < steps - 1, first, last, rows, hidden)
        sizes = first, last, rows, inputs, hidden
        _add_weights(d_w, d_bias, x, t * rows * inputs, h, before, t > 0, gates, g_at, *sizes)
        if width:
            _back(d_x, t * rows * width, w_back, width, gates, g_at, first, last, rows, hidden)
        if t > 0:
            _back(d_h, 0, u, hidden, gates, g_at, first, last, rows, hidden)
