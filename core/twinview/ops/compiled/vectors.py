"""Three loops as vectors of sixteen lanes of LLVM, which splits them where a processor has narrower ones.  The lanes change no number.

`spread` and `weigh` are the cut across a row.  numba makes no vectors of it: a pixel has three bytes, so neighbors in memory are not of one channel,
and weights change from pixel to pixel.  What does go side by side are rows: the lanes hold one pixel of four rows, red, green, blue and a fourth
byte that nobody reads.  Sums and products are exact there (see `cut`), so that they may be contracted.
`fold` is a blur, whose sums stay in registers: in numba's loops each tap loads and stores all of them anew.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numbas_intrinsic


def intrinsic(function: Callable[..., Any]) -> Any:
    """numba's decorator, whose types know nothing of the first argument's going."""
    return numbas_intrinsic(function)


LANES, ROWS, FOLDED = 16, 4, 32
I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES, WHOLE, REAL, PIXELS = ir.VectorType(I8, LANES), ir.VectorType(I32, LANES), ir.VectorType(F32, LANES), ir.VectorType(I32, ROWS)
HALVES = ir.Constant(REAL, [0.5] * LANES)
EXACTLY = ("contract",)  # of sums that come out the same in any order


@intrinsic
def spread(context: Any, source: Any, a0: Any, a1: Any, a2: Any, a3: Any, out: Any, at: Any) -> Any:
    """out[at : at + 64] = four pixels, of the sixteen bytes of `source` from each of a0, a1, a2, a3 on, as floats: by pixel, row, channel."""
    signature = types.void(source, a0, a1, a2, a3, out, at)

    def generate(target: Any, b: Any, types_: Any, args: Any) -> Any:
        memory, found = (_data(target, b, types_, args, i) for i in (0, 5))
        rows = [_load(b, memory, start, BYTES) for start in args[1:5]]
        upper, lower = (b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, 32), [*range(32)])) for x, y in (rows[:2], rows[2:]))
        for pixel in range(4):
            places = ir.Constant(WHOLE, [LANES * row + 3 * pixel + channel for row in range(ROWS) for channel in range(4)])
            _store(b, b.sitofp(b.zext(b.shuffle_vector(upper, lower, places), WHOLE), REAL), found, b.add(args[6], I64(LANES * pixel)))
        return target.get_dummy_value()

    return signature, generate


@intrinsic
def weigh(context: Any, values: Any, at: Any, taps: Any, first: Any, count: Any, out: Any, to: Any, step: Any) -> Any:
    """out[to + j * step] of four rows j = the four bytes of one half + sum_k values[at + 16 k ...] * taps[first + k], cut off: rounded."""
    signature = types.void(values, at, taps, first, count, out, to, step)

    def generate(target: Any, b: Any, types_: Any, args: Any) -> Any:
        memory, weights, lines = (_data(target, b, types_, args, i) for i in (0, 2, 5))

        def terms(k: Any) -> list[Any]:
            value = _load(b, memory, b.add(args[1], b.mul(k, I64(LANES))), REAL)
            return [b.fmul(value, _all_lanes(b, weights, b.add(args[3], k)), flags=EXACTLY)]

        [total] = _sums(b, [HALVES], args[4], terms, EXACTLY)
        pixels = b.bitcast(b.trunc(b.fptosi(total, WHOLE), BYTES), PIXELS)
        for row in range(ROWS):
            _store(b, b.extract_element(pixels, I32(row)), lines, b.add(args[6], b.mul(args[7], I64(row))))
        return target.get_dummy_value()

    return signature, generate


@intrinsic
def fold(context: Any, values: Any, at: Any, offsets: Any, taps: Any, count: Any, out: Any, to: Any) -> Any:
    """out[to : to + 32] = v(at) * taps[0] + sum of (v(at + offsets[2 k]) + v(at + offsets[2 k + 1])) * taps[k + 1], k < count; v(a): 32 from a on."""
    signature = types.void(values, at, offsets, taps, count, out, to)

    def generate(target: Any, b: Any, types_: Any, args: Any) -> Any:
        memory, places, weights, found = (_data(target, b, types_, args, i) for i in (0, 2, 3, 5))
        starts = [I64(start) for start in range(0, FOLDED, LANES)]

        def terms(k: Any) -> list[Any]:
            one, other = (b.add(args[1], b.load(b.gep(places, [b.add(b.mul(k, I64(2)), I64(side))]))) for side in range(2))
            both = [b.fadd(_load(b, memory, b.add(one, start), REAL), _load(b, memory, b.add(other, start), REAL)) for start in starts]
            weight = _all_lanes(b, weights, b.add(k, I64(1)))
            return [b.fmul(value, weight) for value in both]

        middle = _all_lanes(b, weights, I64(0))
        first = [b.fmul(_load(b, memory, b.add(args[1], start), REAL), middle) for start in starts]
        for start, total in zip(starts, _sums(b, first, args[4], terms)):
            _store(b, total, found, b.add(args[6], start))
        return target.get_dummy_value()

    return signature, generate


def _sums(b: Any, first: list[Any], count: Any, terms: Callable[[Any], list[Any]], flags: tuple[str, ...] = ()) -> list[Any]:
    """`first` and the terms of 0 <= k < count, each with its own."""
    totals = [cgutils.alloca_once_value(b, value) for value in first]  # type: ignore[no-untyped-call]
    with cgutils.for_range(b, count) as loop:
        for total, term in zip(totals, terms(loop.index)):
            b.store(b.fadd(b.load(total), term, flags=flags), total)
    return [b.load(total) for total in totals]


def _all_lanes(b: Any, base: Any, at: Any) -> Any:
    """A float of memory in every lane."""
    one = b.insert_element(ir.Constant(REAL, ir.Undefined), b.load(b.gep(base, [at])), I32(0))
    return b.shuffle_vector(one, ir.Constant(REAL, ir.Undefined), ir.Constant(WHOLE, [0] * LANES))


def _data(target: Any, b: Any, types_: Any, args: Any, i: int) -> Any:
    """Where an array that is the i-th argument begins."""
    return target.make_array(types_.args[i])(target, b, args[i]).data


def _load(b: Any, base: Any, at: Any, kind: Any) -> Any:
    return b.load(b.bitcast(b.gep(base, [at]), kind.as_pointer()), align=1)


def _store(b: Any, value: Any, base: Any, at: Any) -> None:
    b.store(value, b.bitcast(b.gep(base, [at]), value.type.as_pointer()), align=1)
