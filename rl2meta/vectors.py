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


def _vector_at(builder: Any, place: Any) -> Any:
    return builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=4)


def _number_at(builder: Any, place: Any) -> Any:
    return _in_all_lanes(builder, builder.load(place, align=4))


def _fused(builder: Any, x: Any, y: Any, z: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    name = f"llvm.fma.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x, y, z])


@intrinsic
def load(_: Any, array: Any, index: Any) -> Any:
    """Return array[index : index + LANES]."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _vector_at(builder, _place(context, builder, signature.args[0], *given))

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
def constant(_: Any, number: Any) -> Any:
    """Return a number in all lanes."""
    return _V(types.float32), lambda context, builder, signature, given: _in_all_lanes(builder, given[0])


@intrinsic
def fma(_: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x y + z, rounded once."""
    return _V(_V, _V, _V), lambda context, builder, signature, given: _fused(builder, *given)


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


def _all_of(kind: Any, count: int) -> Any:
    return types.UniTuple(kind, count)


def _places_from(count: int) -> Any:
    @intrinsic
    def places(_: Any, one: Any, last: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            one, last = given
            ahead = [builder.add(one, ir.Constant(one.type, more)) for more in range(count)]
            found = [builder.select(builder.icmp_signed("<", at, last), at, last) for at in ahead]
            return context.make_tuple(builder, signature.return_type, found)

        return _all_of(types.intp, count)(types.intp, types.intp), generate

    return places


two_from, four_from, eight_from = map(_places_from, (2, 4, 8))
"""(one, last) -> two, four or eight places from ``one`` on; the last one repeats where fewer are left."""

_HAS_32_REGISTERS = LANES == 16
BY_TWO, by_two_from = (8, eight_from) if _HAS_32_REGISTERS else (4, four_from)
"""How many rows of two sums fit into the registers, and their places."""
BY_FOUR, by_four_from = (4, four_from) if _HAS_32_REGISTERS else (2, two_from)
"""How many rows of four sums fit into the registers, and their places."""


@intrinsic
def filled(_: Any, rows: Any, columns: Any, vector: Any) -> Any:
    """Return a tuple for each of the rows that holds the vector for each of the columns."""
    of_row = _all_of(_V, columns.count)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        one = context.make_tuple(builder, of_row, [given[2]] * columns.count)
        return context.make_tuple(builder, signature.return_type, [one] * rows.count)

    return _all_of(of_row, rows.count)(rows, columns, _V), generate


@intrinsic
def spread_at(_: Any, array: Any, at: Any, apart: Any, rows: Any) -> Any:
    """Return the numbers at ``at`` of these rows, which are ``apart``, each in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        starts = _starts(context, builder, signature.args[0], *given)
        return context.make_tuple(
            builder, signature.return_type, [_number_at(builder, row) for row in starts]
        )

    return _all_of(_V, rows.count)(array, types.intp, types.intp, rows), generate


def _starts(context: Any, builder: Any, kind: Any, array: Any, at: Any, apart: Any, rows: Any) -> list[Any]:
    first = _place(context, builder, kind, array, at)
    return [builder.gep(first, [builder.mul(row, apart)]) for row in cgutils.unpack_tuple(builder, rows)]


@intrinsic
def load_at(_: Any, array: Any, at: Any, apart: Any, rows: Any, columns: Any) -> Any:
    """Return a tuple for each of these rows, which are ``apart``: the vectors that begin at these columns."""
    of_row = _all_of(_V, columns.count)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        starts = _starts(context, builder, signature.args[0], *given[:4])
        places = cgutils.unpack_tuple(builder, given[4])
        vectors = [[_vector_at(builder, builder.gep(row, [place])) for place in places] for row in starts]
        found = [context.make_tuple(builder, of_row, each) for each in vectors]
        return context.make_tuple(builder, signature.return_type, found)

    return _all_of(of_row, rows.count)(array, types.intp, types.intp, rows, columns), generate


@intrinsic
def plus(_: Any, sums: Any, numbers: Any, vectors: Any) -> Any:
    """Return sums + numbers ⊗ vectors: one number for each row, one vector for each column of the sums."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        sums, numbers, vectors = (cgutils.unpack_tuple(builder, each) for each in given)
        found = []
        for row, number in zip(sums, numbers, strict=True):
            pairs = zip(cgutils.unpack_tuple(builder, row), vectors, strict=True)
            new = [_fused(builder, number, vector, total) for total, vector in pairs]
            found.append(context.make_tuple(builder, signature.return_type.dtype, new))
        return context.make_tuple(builder, signature.return_type, found)

    return sums(sums, numbers, vectors), generate


@inlined
def store_at(array, at, apart, rows, columns, vectors):
    """Store a tuple of vectors for each of these rows, which are ``apart``, at these columns."""
    for row, of_row in zip(rows, vectors):  # noqa: B905, Numba has no strict
        for column, vector in zip(columns, of_row):  # noqa: B905
            store(array, at + row * apart + column, vector)


FOUR = 0, LANES, 2 * LANES, 3 * LANES
"""Columns of four vectors that follow each other."""


@inlined
def load_four(array, at):
    """Return the four vectors at ``at``."""
    return load_at(array, at, 0, (0,), FOUR)[0]


@inlined
def store_four(array, at, four):
    """Store four vectors."""
    store_at(array, at, 0, (0,), FOUR, (four,))
