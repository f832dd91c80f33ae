"""Three loops as vectors of sixteen lanes of LLVM, which splits them where a processor has narrower ones.  The lanes change no number.

`spread` and `weigh` are the cut across a row.  numba makes no vectors of it: a pixel has three bytes, so neighbors in memory are not of one channel,
and weights change from pixel to pixel.  What does go side by side are rows: the lanes hold one pixel of four rows, red, green, blue and a fourth
byte that nobody reads.  Sums and products are exact here (see `cut`), so that they may be contracted.
`fold` is a blur: in numba's loops each tap loads and stores all sums anew, here they stay in registers.
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


LANES, ROWS, FOLDED = 16, 4, 64
I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES, WHOLE, REAL, PIXELS = ir.VectorType(I8, LANES), ir.VectorType(I32, LANES), ir.VectorType(F32, LANES), ir.VectorType(I32, ROWS)


@intrinsic
def spread(context: Any, source: Any, a0: Any, a1: Any, a2: Any, a3: Any, out: Any, at: Any) -> Any:
    """out[at : at + 16] = four bytes of `source` from each of a0, a1, a2, a3 on, as floats."""
    signature = types.void(source, a0, a1, a2, a3, out, at)

    def generate(target: Any, b: Any, types_: Any, args: Any) -> Any:
        memory = _data(target, b, types_, args, 0)
        pixels = ir.Constant(PIXELS, ir.Undefined)
        for row in range(ROWS):
            pixels = b.insert_element(pixels, _load(b, memory, args[1 + row], I32), I32(row))
        values = b.sitofp(b.zext(b.bitcast(pixels, BYTES), WHOLE), REAL)
        _store(b, values, _data(target, b, types_, args, 5), args[6])
        return target.get_dummy_value()

    return signature, generate


@intrinsic
def weigh(context: Any, values: Any, at: Any, taps: Any, first: Any, count: Any, out: Any, to: Any, step: Any) -> Any:
    """out[to + j * step] of four rows j = the four bytes of one half + sum_k values[at + 16 k ...] * taps[first + k], cut off: rounded."""
    signature = types.void(values, at, taps, first, count, out, to, step)

    def generate(target: Any, b: Any, types_: Any, args: Any) -> Any:
        memory, weights, lines = (_data(target, b, types_, args, i) for i in (0, 2, 5))
        total = cgutils.alloca_once(b, REAL)  # type: ignore[no-untyped-call]
        b.store(ir.Constant(REAL, [0.5] * LANES), total)
        with cgutils.for_range(b, args[4]) as loop:
            weight = _all_lanes(b, weights, b.add(args[3], loop.index))
            value = _load(b, memory, b.add(args[1], b.mul(loop.index, I64(LANES))), REAL)
            product = b.fmul(value, weight, flags=("contract",))
            b.store(b.fadd(b.load(total), product, flags=("contract",)), total)
        pixels = b.bitcast(b.trunc(b.fptosi(b.load(total), WHOLE), BYTES), PIXELS)
        for row in range(ROWS):
            _store(b, b.extract_element(pixels, I32(row)), lines, b.add(args[6], b.mul(args[7], I64(row))))
        return target.get_dummy_value()

    return signature, generate


@intrinsic
def fold(context: Any, values: Any, at: Any, offsets: Any, taps: Any, count: Any, out: Any, to: Any) -> Any:
    """out[to : to + 64] = v(at) * taps[0] + sum of (v(at + offsets[2 k]) + v(at + offsets[2 k + 1])) * taps[k + 1], k < count; v(a): 64 from a on."""
    signature = types.void(values, at, offsets, taps, count, out, to)

    def generate(target: Any, b: Any, types_: Any, args: Any) -> Any:
        memory, places, weights, found = (_data(target, b, types_, args, i) for i in (0, 2, 3, 5))
        starts = [I64(start) for start in range(0, FOLDED, LANES)]
        sums = [cgutils.alloca_once(b, REAL) for _ in starts]  # type: ignore[no-untyped-call]
        weight = _all_lanes(b, weights, I64(0))
        for start, total in zip(starts, sums):
            b.store(b.fmul(_load(b, memory, b.add(args[1], start), REAL), weight), total)
        with cgutils.for_range(b, args[4]) as loop:
            k = b.mul(loop.index, I64(2))
            one, other = (b.add(args[1], b.load(b.gep(places, [place]))) for place in (k, b.add(k, I64(1))))
            weight = _all_lanes(b, weights, b.add(loop.index, I64(1)))
            for start, total in zip(starts, sums):
                both = b.fadd(_load(b, memory, b.add(one, start), REAL), _load(b, memory, b.add(other, start), REAL))
                b.store(b.fadd(b.load(total), b.fmul(both, weight)), total)
        for start, total in zip(starts, sums):
            _store(b, b.load(total), found, b.add(args[6], start))
        return target.get_dummy_value()

    return signature, generate


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
