"""A view cut out of an image straight into its place: torch's antialiased bilinear resize of bytes, and the mirror; the same pixels.

torch weighs pixels by whole numbers w 2^p, p as large as keeps them below 2^15, goes across first, rounds to bytes, and then down.  Here weights are
floats, divided by 2^p, and sums begin at one half, so that cutting off rounds.  Up to p = EXACT all sums are whole numbers of 2^-p below 2^8, which
a float holds: they are exact in any order.  Larger p, of images shrunk to less than a quarter, are left to torch.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinview.ops.compiled.build import compiled, inner
from twinview.ops.compiled.vectors import LANES, spread, weigh

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Lines = NDArray[np.uint32]  # a pixel: red, green, blue from the lowest byte on

EXACT = 16  # bits: 24 of a float, less the 8 of a byte
RED, GREEN, BLUE, BYTE = (np.uint32(n) for n in (0, 8, 16, 255))  # the first bit of a channel in a pixel of `Lines`, and the bits of a channel
NOTHING, HALF = np.float32(0), np.float32(0.5)
SPARE = 32  # lines behind the last, since four are made at a time, and what has no weight may lie behind it


@compiled
def cut(pixels: Bytes, x0: int, y0: int, x1: int, y1: int, flip: bool, lines: Lines, out: Bytes) -> bool:
    """The box of [H, W, 3] as a view, `out` [3, h, w]; `lines` [H + SPARE, w] is room for what lies between.  False: not made, leave it to torch."""
    height, width = out.shape[1:]
    columns, across, bits_across = weights(x1 - x0, width)
    rows, down, bits_down = weights(y1 - y0, height)
    if max(bits_across, bits_down) > EXACT:
        return False
    resize_across(pixels, x0, y0, x1, y1, flip, columns, across, lines)
    resize_down(lines, rows, down, out)
    return True


@inner
def weights(old: int, new: int) -> tuple[NDArray[np.int64], Floats, int]:
    """Of `old` pixels resized to `new`: the first that each takes [new], its weights of those from there on [new, taps], and p."""
    scale = old / new
    support = max(scale, 1.0)
    most = int(np.ceil(support)) * 2 + 1
    starts, exact, top, taps = np.zeros(new, np.int64), np.zeros((new, most), np.float64), 0.0, 1
    for i in range(new):
        center = scale * (i + 0.5)
        first = max(int(center - support + 0.5), 0)
        size = min(int(center + support + 0.5), old) - first
        total = 0.0
        for k in range(size):
            exact[i, k] = max(1 - abs((k + first - center + 0.5) * (1 / support)), 0.0)  # a triangle
            total += exact[i, k]
        for k in range(size):
            exact[i, k] /= total
            top = max(top, exact[i, k])
        starts[i], taps = first, max(taps, size)
    p = 0
    while p < 22 and int(0.5 + top * (1 << (p + 1))) < (1 << 15):
        p += 1
    out = np.empty((new, taps), np.float32)
    for i in range(new):
        for k in range(taps):
            out[i, k] = np.float32(int(exact[i, k] * (1 << p) + 0.5)) / np.float32(1 << p)
    return starts, out, p


@inner
def resize_across(
    pixels: Bytes, x0: int, y0: int, x1: int, y1: int, flip: bool, starts: NDArray[np.int64], taps: Floats, lines: Lines
) -> None:
    """Every row of the box to its line [w], mirrored if `flip`, four rows at a time."""
    width, count = taps.shape
    columns, stride = x1 - x0, 3 * pixels.shape[1]
    values, weight, out = pixels.reshape(-1), taps.reshape(-1), lines.reshape(-1)
    wide = aligned(16 * (columns + count))  # four rows side by side; zeros behind them, for weights of nothing
    for y in range(0, y1 - y0, 4):
        left = y1 - y0 - 1 - y  # rows below this one; where there are none, the last is taken again
        a0 = (y0 + y) * stride + 3 * x0
        a1, a2, a3 = a0 + min(1, left) * stride, a0 + min(2, left) * stride, a0 + min(3, left) * stride
        whole = (columns - 2) // 4 * 4  # pixels that are taken by fours, of which each load takes sixteen bytes; the rest one by one
        for x in range(0, whole, 4):
            spread(values, a0 + 3 * x, a1 + 3 * x, a2 + 3 * x, a3 + 3 * x, wide, 16 * x)
        for x in range(max(0, whole), columns):
            for row, at in enumerate((a0, a1, a2, a3)):
                for c in range(3):
                    wide[16 * x + 4 * row + c] = np.float32(values[at + 3 * x + c])
        for x in range(width):
            to = y * width + (width - 1 - x if flip else x)
            weigh(wide, 16 * starts[x], weight, x * count, count, out, to, width)


@inner
def aligned(size: int) -> Floats:
    """Zeros [size] that begin where a line of a cache does: a vector that lies in two of them takes twice as long."""
    room = np.zeros(size + LANES, np.float32)
    first = -(room.ctypes.data // 4) % LANES
    return room[first : first + size]


@inner
def resize_down(lines: Lines, starts: NDArray[np.int64], taps: Floats, out: Bytes) -> None:
    """Lines, weighted, to the rows of `out` [3, h, w].  Two lines at a time, since sums go to memory and back with each.

    A line behind the last weights is read too, and weighs nothing.
    """
    height, width = out.shape[1:]
    sums = np.empty((3, width), np.float32)
    red, green, blue = sums
    for y in range(height):
        for x in range(width):
            red[x], green[x], blue[x] = HALF, HALF, HALF
        for k in range(0, taps.shape[1], 2):
            upper, lower = lines[starts[y] + k], lines[starts[y] + k + 1]
            a, b = taps[y, k], taps[y, k + 1] if k + 1 < taps.shape[1] else NOTHING
            for x in range(width):
                red[x] += of_two(upper[x], a, lower[x], b, RED)
                green[x] += of_two(upper[x], a, lower[x], b, GREEN)
                blue[x] += of_two(upper[x], a, lower[x], b, BLUE)
        for c in range(3):
            values, made = sums[c], out[c, y]
            for x in range(width):
                made[x] = np.uint8(np.int32(values[x]))


@inner
def of_two(upper: np.uint32, a: np.float32, lower: np.uint32, b: np.float32, channel: np.uint32) -> Any:
    """The weighted sum of a channel of two pixels; bytes go by way of int32, which processors convert by vectors."""
    return np.float32(np.int32(upper >> channel & BYTE)) * a + np.float32(np.int32(lower >> channel & BYTE)) * b
