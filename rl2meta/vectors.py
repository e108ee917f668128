"""Vectors of float32 in functions that Numba compiles: a vector is LANES numbers, and fits into a register.

Every function here works on all lanes at once. ``rl2meta.kernels.kept_on_disk`` compiles what was kept again
when this file changes.
"""

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model
from torch import Tensor
from torch.nn.functional import pad


def _lanes() -> int:
    """Return how many numbers fit into a vector of this processor, at least 8."""
    try:
        return 16 if binding.get_host_cpu_features().get("avx512f") else 8
    except RuntimeError:  # LLVM cannot tell on every operating system
        return 8


LANES = _lanes()
"""Numbers in a vector. The compiler splits it where a processor has shorter ones."""


def wide(numbers: int) -> int:
    """Return how many numbers fill the vectors that hold so many."""
    return -(-numbers // LANES) * LANES


def widened(x: Tensor) -> Tensor:
    """Return ``x`` [..., N] with zeros behind it that fill the vectors, [..., wide(N)]."""
    missing = wide(x.shape[-1]) - x.shape[-1]
    return pad(x, (0, missing)) if missing else x


_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_float = np.float32
_ROUND = _float(1.5 * 2**23)  # adding it rounds to whole numbers
_ROOT = ir.Constant(_WORDS, [0x3F3504F3] * LANES)  # the bits of √½


class Vector(types.Type):
    """LANES numbers of float32, in Numba's types."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


_V = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


inlined = njit(forceinline=True, error_model="numpy")


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _in_all_lanes(builder: Any, number: Any) -> Any:
    none = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(none, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, none, ir.Constant(_WORDS, [0] * LANES))


@intrinsic
def load(_: Any, array: Any, index: Any) -> Any:
    """Return array[index : index + LANES]."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _place(context, builder, signature.args[0], *given)
        return builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=4)

    return _V(array, types.intp), generate


@intrinsic
def store(_: Any, array: Any, index: Any, vector: Any) -> Any:
    """Set array[index : index + LANES]."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _place(context, builder, signature.args[0], *given[:2])
        builder.store(given[2], builder.bitcast(place, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _V), generate


@intrinsic
def spread(_: Any, array: Any, index: Any) -> Any:
    """Return array[index] in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _place(context, builder, signature.args[0], *given)
        return _in_all_lanes(builder, builder.load(place, align=4))

    return _V(array, types.intp), generate


@intrinsic
def constant(_: Any, number: Any) -> Any:
    """Return a number in all lanes."""
    return _V(types.float32), lambda context, builder, signature, given: _in_all_lanes(builder, given[0])


@intrinsic
def fma(_: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x y + z, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        name = f"llvm.fma.v{LANES}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)

    return _V(_V, _V, _V), generate


def _of_two(name: str) -> Any:
    @intrinsic
    def operation(_: Any, x: Any, y: Any) -> Any:
        return _V(_V, _V), lambda context, builder, signature, given: getattr(builder, name)(*given)

    return operation


add, sub, mul, div = map(_of_two, ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic
def within(_: Any, x: Any, low: Any, high: Any) -> Any:
    """Return x, or the bound that it exceeds; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, low, high = given
        x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
        return builder.select(builder.fcmp_ordered("<", x, low), low, x)

    return _V(_V, _V, _V), generate


def _chosen(relation: str) -> Any:
    @intrinsic
    def operation(_: Any, x: Any, y: Any, then: Any, other: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            x, y, then, other = given
            return builder.select(builder.fcmp_ordered(relation, x, y), then, other)

        return _V(_V, _V, _V, _V), generate

    return operation


if_equal, if_at_most = map(_chosen, ("==", "<="))
"""(x, y, then, other) -> ``then`` where x = y or x <= y, else ``other``, also where x or y is NaN."""


@intrinsic
def exponent(_: Any, x: Any) -> Any:
    """Return n for x = m 2ⁿ with √½ <= m < √2, for normal x > 0."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        above = builder.sub(builder.bitcast(given[0], _WORDS), _ROOT)
        return builder.sitofp(builder.ashr(above, ir.Constant(_WORDS, [23] * LANES)), _VECTOR)

    return _V(_V), generate


@intrinsic
def mantissa(_: Any, x: Any) -> Any:
    """Return m for x = m 2ⁿ with √½ <= m < √2, for normal x > 0."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        above = builder.sub(builder.bitcast(given[0], _WORDS), _ROOT)
        return builder.bitcast(
            builder.add(builder.and_(above, ir.Constant(_WORDS, [2**23 - 1] * LANES)), _ROOT), _VECTOR
        )

    return _V(_V), generate


@intrinsic
def power(_: Any, rounded: Any) -> Any:
    """Return 2ⁿ for ``rounded`` = n + _ROUND, whose last bits hold n; |n| <= 126."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        exponent = builder.shl(builder.bitcast(given[0], _WORDS), ir.Constant(_WORDS, [23] * LANES))
        one = builder.bitcast(ir.Constant(_VECTOR, [1.0] * LANES), _WORDS)
        return builder.bitcast(builder.add(exponent, one), _VECTOR)

    return _V(_V), generate


@inlined
def _near_power(x):
    """Return r, y and 2ⁿ with eˣ = 2ⁿ (1 + r + r² y), |r| <= ln 2 / 2, for |x| <= 87; of Cephes (expf.c)."""
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
    return r, y, power(rounded)


@inlined
def exp(x):
    """Return eʳ and 2ⁿ with eˣ = 2ⁿ eʳ, for |x| <= 87."""
    r, y, scale = _near_power(x)
    return fma(y, mul(r, r), add(r, constant(_float(1)))), scale


@inlined
def exp_and_less(x):
    """Return eˣ, and eˣ − 1 that is as exact near 0, for |x| <= 87."""
    one = constant(_float(1))
    r, y, scale = _near_power(x)
    whole = mul(fma(y, mul(r, r), add(r, one)), scale)
    return whole, if_equal(scale, one, fma(y, mul(r, r), r), sub(whole, one))


@inlined
def log(x):
    """Return ln x for normal x > 0, and NaN for NaN and ∞; a polynomial of Cephes (logf.c)."""
    n, r = exponent(x), sub(mantissa(x), constant(_float(1)))
    y = fma(constant(_float(7.0376836292e-2)), r, constant(_float(-1.1514610310e-1)))
    y = fma(y, r, constant(_float(1.1676998740e-1)))
    y = fma(y, r, constant(_float(-1.2420140846e-1)))
    y = fma(y, r, constant(_float(1.4249322787e-1)))
    y = fma(y, r, constant(_float(-1.6668057665e-1)))
    y = fma(y, r, constant(_float(2.0000714765e-1)))
    y = fma(y, r, constant(_float(-2.4999993993e-1)))
    y = fma(y, r, constant(_float(3.3333331174e-1)))
    square = mul(r, r)
    y = fma(n, constant(_float(-2.12194440e-4)), mul(mul(y, r), square))  # ln 2 in two parts
    y = add(r, fma(constant(_float(-0.5)), square, y))
    return fma(n, constant(_float(0.693359375)), fma(x, constant(_float(0)), y))  # x · 0 keeps NaN


@inlined
def sigmoid(x):
    """Return σ(x)."""
    one = constant(_float(1))
    e, scale = exp(sub(constant(_float(0)), x))
    return div(one, fma(e, scale, one))  # a product, so NaN stays NaN, whatever its bits are


@inlined
def tanh(x):
    """Return 2 σ(2x) − 1."""
    return fma(constant(_float(2)), sigmoid(add(x, x)), constant(_float(-1)))


@inlined
def load_four(array, at):
    """Return the four vectors at ``at``."""
    return load(array, at), load(array, at + LANES), load(array, at + 2 * LANES), load(array, at + 3 * LANES)


@inlined
def store_four(array, at, apart, four):
    """Store four vectors, ``apart`` numbers from one to the next."""
    store(array, at, four[0])
    store(array, at + apart, four[1])
    store(array, at + 2 * apart, four[2])
    store(array, at + 3 * apart, four[3])


@inlined
def plus(sums, x, four):
    """Return sums + x · four."""
    a, b, c, d = sums
    return fma(x, four[0], a), fma(x, four[1], b), fma(x, four[2], c), fma(x, four[3], d)


@inlined
def four_from(one, last):
    """Return four places from ``one`` on; the last one repeats where fewer are left."""
    return min(one, last), min(one + 1, last), min(one + 2, last), min(one + 3, last)


@inlined
def spread_at(array, at, apart, four):
    """Return the numbers of four rows that are ``apart``, each in all lanes."""
    a, b, c, d = four
    return (
        spread(array, at + a * apart),
        spread(array, at + b * apart),
        spread(array, at + c * apart),
        spread(array, at + d * apart),
    )


@inlined
def load_at(array, at, apart, four):
    """Return vectors of four rows that are ``apart``."""
    a, b, c, d = four
    return (
        load(array, at + a * apart),
        load(array, at + b * apart),
        load(array, at + c * apart),
        load(array, at + d * apart),
    )


@inlined
def store_at(array, at, apart, places, vectors):
    """Store vectors of rows that are ``apart``, one at each of the places."""
    for place, vector in zip(places, vectors):  # noqa: B905, Numba has no strict
        store(array, at + place * apart, vector)
