"""The photometry of 8-bit images on a CPU, compiled by numba: the arithmetic of `color` and `blur`, a few thousand pixels at a time.

Torch's operations one by one take several times as long: each goes through memory anew, and starting some hundred of them costs as much as they do.
Every operation gives whole numbers, so between two passes over an image they are kept as bytes, which a core's cache holds.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinview.ops.compiled.build import compiled
from twinview.ops.compiled.cut import to_bytes

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Coins = NDArray[np.bool_]

BRIGHTNESS, CONTRAST, SATURATION = range(3)  # in the order of `photometry.JITTER`; hue is the fourth
ZERO, ONE, TWO, THREE, SIX, TOP = (np.float32(n) for n in (0, 1, 2, 3, 6, 255))  # numba makes doubles of Python's numbers
RED, GREEN, BLUE = (np.float32(share) for share in (0.2989, 0.587, 0.114))  # of `color.luma`
NEARLY = np.float32((256 - 1e-3) / 255)  # of `color.hue`
BLOCK = 1024  # pixels at a time: three channels of floats, 12 KiB


@compiled
def photometry(
    images: Bytes, order: NDArray[np.int64], factors: Floats, active: Coins, grey: Coins, taps: Floats, starts: NDArray[np.int64], solarize: Coins,
    out: Bytes,
) -> None:
    """Images [B, 3, h, w] -> `out` [B, 3, h, w].

    `order` and `factors` [B, 4] are those of the draws; operations that are not `active` [B, 4] are left out.  `taps[starts[b] : starts[b + 1]]` is
    the kernel of an image's blur, odd in number; one tap: none.
    """
    shape = images.shape[1:]
    size = shape[1] * shape[2]
    work, block, shifts = np.empty(shape, np.uint8), np.empty(3 * BLOCK, np.float32), np.empty(3, np.float32)
    for b in range(len(images)):
        kernel = taps[starts[b] : starts[b + 1]]
        source, done = images[b].reshape(3, size), out[b].reshape(3, size)
        target = work.reshape(3, size) if len(kernel) > 1 else done
        turn = SIX * factors[b, 3]
        for c in range(3):
            shifts[c] = (turn - TWO * np.float32(c) + THREE) % SIX - THREE
        before, mean = 0, ZERO  # operations before contrast, which wants the mean of what they make
        if active[b, CONTRAST]:
            while order[b, before] != CONTRAST:
                before += 1
            total = jittered(source, order[b, :before], factors[b], active[b], ZERO, shifts, False, True, block, target)
            source, mean = target, np.float32(total / size)
        jittered(source, order[b, before:], factors[b], active[b], mean, shifts, grey[b], False, block, target)
        if len(kernel) > 1:
            blur(work, kernel, 1 if grey[b] else 3, out[b])
        if solarize[b]:
            for c in range(1 if grey[b] else 3):
                channel = done[c]
                for i in range(size):
                    channel[i] = min(channel[i], ~channel[i])  # of a byte and its complement, exactly one is below 128
        if grey[b]:
            done[1], done[2] = done[0], done[0]


@compiled
def jittered(
    source: Bytes, order: NDArray[np.int64], factors: Floats, active: Coins, mean: np.float32, shifts: Floats, grey: bool, summed: bool,
    block: Floats, out: Bytes,
) -> Any:
    """Bytes [3, n] -> `out` [3, n] after the operations of `order`, of a `grey` image its first channel alone; the sum of grey values if `summed`."""
    total, size = 0, source.shape[1]
    for at in range(0, size, BLOCK):
        n = min(BLOCK, size - at)
        part = block[: 3 * n].reshape(3, n)
        for c in range(3):
            values, floats = source[c][at : at + n], part[c]
            for i in range(n):
                floats[i] = np.float32(np.int32(values[i]))  # by way of int32, which processors convert by vectors
        for k in order:
            if active[k]:
                jitter(part, k, factors[k], mean, shifts)
        if summed:
            total += grey_sum(part)
        if grey:
            red, green, blue = part[0], part[1], part[2]
            for i in range(n):
                red[i] = luma(red[i], green[i], blue[i])
        for c in range(1 if grey else 3):
            to_bytes(part[c], out[c][at : at + n])
    return total


@compiled
def luma(red: np.float32, green: np.float32, blue: np.float32) -> np.float32:
    """`color.luma` of a pixel."""
    grey: np.float32 = np.floor(red * RED + green * GREEN + blue * BLUE)
    return grey


@compiled
def grey_sum(block: Floats) -> Any:
    """Of the grey values of [3, n]: whole numbers, so that their order does not matter."""
    red, green, blue, total = block[0], block[1], block[2], np.int32(0)
    for i in range(len(red)):
        total += np.int32(luma(red[i], green[i], blue[i]))
    return total


@compiled
def mixed(value: np.float32, factor: np.float32, other: np.float32) -> np.float32:
    """`color`'s blend; `other` comes times 1 - factor."""
    within: np.float32 = np.floor(min(max(value * factor + other, ZERO), TOP))
    return within


@compiled
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


@compiled
def unlike(distance: np.float32) -> np.float32:
    """1 where a hue is a third of a turn or more from a channel's own, 2 within a sixth of it (`color.hue`)."""
    return min(max(abs(abs(distance) - THREE), ONE), TWO)


@compiled
def blur(planes: Bytes, taps: Floats, channels: int, out: Bytes) -> None:
    """The first channels of [3, h, w] under a symmetric kernel, down and then across, mirrored at the borders, rounded into `out` [3, h, w]."""
    height, width = planes.shape[1:]
    reach = len(taps) // 2
    sums, wide = np.empty(width, np.float32), np.empty(width + 2 * reach, np.float32)
    middle = wide[reach : reach + width]  # slices: numba makes no vectors of a loop over sums of indices
    for c in range(channels):
        plane = planes[c]
        for y in range(height):
            here, weight = plane[y], taps[reach]
            for i in range(width):
                middle[i] = np.float32(np.int32(here[i])) * weight
            for k in range(1, reach + 1):  # down: rows above and below have one weight
                above, below, weight = plane[abs(y - k)], plane[min(y + k, 2 * (height - 1) - y - k)], taps[reach + k]
                for i in range(width):
                    middle[i] += np.float32(np.int32(np.int32(above[i]) + np.int32(below[i]))) * weight
            for k in range(1, reach + 1):
                wide[reach - k], wide[reach + width - 1 + k] = wide[reach + k], wide[reach + width - 1 - k]
            weight = taps[reach]
            for i in range(width):
                sums[i] = middle[i] * weight
            for k in range(1, reach + 1):  # across
                left, right, weight = wide[reach - k : reach - k + width], wide[reach + k : reach + k + width], taps[reach + k]
                for i in range(width):
                    sums[i] += (left[i] + right[i]) * weight
            blurred = out[c, y]
            for i in range(width):
                blurred[i] = np.uint8(np.int32(np.rint(sums[i])))
