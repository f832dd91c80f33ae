"""The photometry of 8-bit images on a CPU, compiled by numba: the arithmetic of `color` and `blur`, a few thousand pixels at a time.

Torch's operations one by one take several times as long: each goes through memory anew, and starting some hundred of them costs as much as they do.
Every operation gives whole numbers, so between two passes over an image they are kept as bytes, which a core's cache holds.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinview.ops.compiled.build import compiled, inner
from twinview.ops.compiled.cut import aligned
from twinview.ops.compiled.vectors import FOLDED, LANES, fold

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Coins = NDArray[np.bool_]

BRIGHTNESS, CONTRAST, SATURATION = range(3)  # in the order of `photometry.JITTER`; hue is the fourth
ZERO, ONE, TWO, THREE, SIX, TOP = (np.float32(n) for n in (0, 1, 2, 3, 6, 255))  # numba makes doubles of Python's numbers
RED, GREEN, BLUE = (np.float32(share) for share in (0.2989, 0.587, 0.114))  # of `color.luma`
NEARLY = np.float32((256 - 1e-3) / 255)  # of `color.hue`
BLOCK = 1024  # pixels at a time: three channels of floats, 12 KiB


@compiled
def colors(images: Bytes, order: NDArray[np.int64], factors: Floats, active: Coins, grey: Coins, out: Bytes) -> None:
    """Jitter and grey of images [B, 3, h, w] -> `out` [B, 3, h, w], of a `grey` one its first channel alone.

    `order` and `factors` [B, 4] are those of the draws; operations that are not `active` [B, 4] are left out.
    """
    size = images.shape[2] * images.shape[3]
    block, shifts = np.empty(3 * BLOCK, np.float32), np.empty(3, np.float32)
    for b in range(len(images)):
        source, done = images[b].reshape(3, size), out[b].reshape(3, size)
        turn = SIX * factors[b, 3]
        for c in range(3):
            shifts[c] = (turn - TWO * np.float32(c) + THREE) % SIX - THREE
        before, mean, total = 0, ZERO, 0  # operations before contrast, which wants the mean of what they make
        while before < 4 and active[b, CONTRAST] and order[b, before] != CONTRAST:
            before += 1
        for last in (False, True):  # up to contrast, for that mean; from there on
            if not last and not active[b, CONTRAST]:
                continue
            for at in range(0, size, BLOCK):
                n = min(BLOCK, size - at)
                part = block[: 3 * n].reshape(3, n)
                for c in range(3):
                    values, floats = source[c][at : at + n], part[c]
                    for i in range(n):
                        floats[i] = np.float32(np.int32(values[i]))  # by way of int32, which processors convert by vectors
                for k in order[b, before:] if last else order[b, :before]:
                    if active[b, k]:
                        jitter(part, k, factors[b, k], mean, shifts)
                if not last:
                    total += grey_sum(part)
                elif grey[b]:
                    red, green, blue = part[0], part[1], part[2]
                    for i in range(n):
                        red[i] = luma(red[i], green[i], blue[i])
                for c in range(1 if last and grey[b] else 3):
                    to_bytes(part[c], done[c][at : at + n])
            source, mean = done, np.float32(total / size)


@compiled
def finish(images: Bytes, taps: Floats, starts: NDArray[np.int64], solarize: Coins, grey: Coins) -> None:
    """Blur and solarisation in place, and of `grey` images [3, h, w] the first channel into all.

    `taps[starts[b] : starts[b + 1]]` is the kernel of an image's blur, odd in number; one tap: none.
    """
    height, width = images.shape[2:]
    most = 1
    for b in range(len(images)):
        most = max(most, starts[b + 1] - starts[b])
    room = aligned(height * (width + most + LANES) + FOLDED if most > 1 else 0)  # once: new memory comes in pages that cost time
    for b in range(len(images)):
        kernel, channels = taps[starts[b] : starts[b + 1]], 1 if grey[b] else 3
        for c in range(channels if len(kernel) > 1 else 0):
            blur(images[b, c], kernel, room)
        planes = images[b].reshape(3, -1)
        for c in range(channels if solarize[b] else 0):
            values = planes[c]
            for i in range(len(values)):
                values[i] = min(values[i], ~values[i])  # of a byte and its complement, exactly one is below 128
        for c in range(channels, 3):
            first, values = planes[0], planes[c]
            for i in range(len(first)):
                values[i] = first[i]  # one by one: of `values[:] = first` numba compiles the words of its error too, for two seconds


@inner
def to_bytes(values: Floats, out: Bytes) -> None:
    """Values [n] of 0 to below 256, cut off."""
    for i in range(len(out)):
        out[i] = np.uint8(np.int32(values[i]))


@inner
def luma(red: np.float32, green: np.float32, blue: np.float32) -> np.float32:
    """`color.luma` of a pixel."""
    grey: np.float32 = np.floor(red * RED + green * GREEN + blue * BLUE)
    return grey


@inner
def grey_sum(block: Floats) -> Any:
    """Of the grey values of [3, n]: whole numbers, so that their order does not matter."""
    red, green, blue, total = block[0], block[1], block[2], np.int32(0)
    for i in range(len(red)):
        total = np.int32(total + np.int32(luma(red[i], green[i], blue[i])))  # numba's sums of int32 are int64, of which a vector holds half as many
    return total


@inner
def mixed(value: np.float32, factor: np.float32, other: np.float32) -> np.float32:
    """`color`'s blend; `other` comes times 1 - factor."""
    within: np.float32 = np.floor(min(max(value * factor + other, ZERO), TOP))
    return within


@inner
def jitter(block: Floats, operation: int, factor: np.float32, mean: np.float32, shifts: Floats) -> None:
    """One operation of `color` on [3, n].  `mean`: of the image's grey values; `shifts` [3]: from each channel's hue, in sixths of a turn."""
    red, green, blue = block[0], block[1], block[2]
    if operation == BRIGHTNESS:
        for i in range(len(red)):
            red[i], green[i], blue[i] = mixed(red[i], factor, ZERO), mixed(green[i], factor, ZERO), mixed(blue[i], factor, ZERO)
    elif operation == CONTRAST:
        other = mean * (ONE - factor)
        for i in range(len(red)):
            red[i], green[i], blue[i] = mixed(red[i], factor, other), mixed(green[i], factor, other), mixed(blue[i], factor, other)
    elif operation == SATURATION:
        for i in range(len(red)):
            own = luma(red[i], green[i], blue[i]) * (ONE - factor)
            red[i], green[i], blue[i] = mixed(red[i], factor, own), mixed(green[i], factor, own), mixed(blue[i], factor, own)
    else:
        for i in range(len(red)):
            r, g, b = red[i], green[i], blue[i]
            value = max(max(r, g), b)
            chroma = value - min(min(r, g), b)
            angle = (g + b - r - value) / max(chroma, ONE) + TWO
            angle = angle if g >= b else -angle
            chroma *= NEARLY
            low = value * NEARLY - chroma * TWO
            red[i] = np.floor(low + chroma * unlike(angle + shifts[0]))
            green[i] = np.floor(low + chroma * unlike(angle + shifts[1]))
            blue[i] = np.floor(low + chroma * unlike(angle + shifts[2]))


@inner
def unlike(distance: np.float32) -> np.float32:
    """1 where a hue is a third of a turn or more from a channel's own, 2 within a sixth of it (`color.hue`)."""
    return min(max(abs(abs(distance) - THREE), ONE), TWO)


@inner
def blur(plane: Bytes, taps: Floats, rows: Floats) -> None:
    """[h, w] under a symmetric kernel, in place: down and then across, mirrored at the borders, rounded.  `rows` is room; a core's cache holds those
    that a kernel reaches.
    """
    height, width = plane.shape
    reach = len(taps) // 2
    row, half = (width + 2 * reach + LANES - 1) // LANES * LANES, taps[reach:]
    for y in range(height):
        values, wide = plane[y], rows[y * row : (y + 1) * row]
        middle = wide[reach : reach + width]  # slices: numba makes no vectors of a loop over sums of indices
        for i in range(width):
            middle[i] = np.float32(np.int32(values[i]))
        for k in range(1, reach + 1):
            wide[reach - k], wide[reach + width - 1 + k] = wide[reach + k], wide[reach + width - 1 - k]
    down, across = aligned(row + 2 * FOLDED), np.empty(width + FOLDED, np.float32)
    beside, around = np.empty(2 * reach, np.int64), np.empty(2 * reach, np.int64)
    for k in range(reach):
        beside[2 * k], beside[2 * k + 1] = -k - 1, k + 1
    for y in range(height):
        for k in range(reach):
            above, below = abs(y - k - 1), min(y + k + 1, 2 * (height - 1) - y - k - 1)
            around[2 * k], around[2 * k + 1] = (above - y) * row, (below - y) * row
        for i in range(0, row, FOLDED):
            fold(rows, y * row + i, around, half, reach, down, i)
        for i in range(0, width, FOLDED):
            fold(down, reach + i, beside, half, reach, across, i)
        values = plane[y]
        for i in range(width):
            values[i] = np.uint8(np.int32(np.rint(across[i])))
