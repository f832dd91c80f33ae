"""The photometry of one 8-bit image on a CPU, compiled by numba: the arithmetic of `color` and `blur`, a row of pixels at a time.

Torch's operations one by one take four times as long: each goes through memory anew, and starting some hundred of them costs as much as they do.
Nothing is reordered or contracted (numba's `fastmath` stays off), so that the width of a processor's vectors changes nothing.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

BRIGHTNESS, CONTRAST, SATURATION = range(3)  # in the order of `photometry.JITTER`; hue is the fourth
ZERO, ONE, TWO, THREE, SIX, TOP = (np.float32(n) for n in (0, 1, 2, 3, 6, 255))  # numba makes doubles of Python's numbers
RED, GREEN, BLUE = (np.float32(share) for share in (0.2989, 0.587, 0.114))  # of `color.luma`
NEARLY = np.float32((256 - 1e-3) / 255)  # of `color.hue`


def compiled(function: F) -> F:
    """Machine code, made at the first call and kept on disk, where a folder for it can be written."""
    try:
        return cast(F, numba.njit(cache=True)(function))
    except RuntimeError:  # neither beside this file, nor in the user's cache
        return cast(F, numba.njit(function))


@compiled
def photometry(
    pixels: Bytes, order: NDArray[np.int64], factors: Floats, active: NDArray[np.bool_], grey: bool, taps: Floats, solarize: bool, out: Bytes
) -> None:
    """Pixels [h, w, 3] -> `out` [3, h, w].

    `order` and `factors` [4] are those of the draws; operations that are not `active` [4] are left out.  `taps` is a blur's kernel, odd in number.
    """
    height, width = pixels.shape[:2]
    rows = np.empty((height, 3, width), np.float32)
    turn = SIX * factors[3]
    shifts = np.array([(turn - own + THREE) % SIX - THREE for own in (ZERO, TWO, TWO + TWO)], np.float32)
    before = 0  # operations before contrast, which wants the mean of what they make
    if active[CONTRAST]:
        while order[before] != CONTRAST:
            before += 1
    total = 0
    for y in range(height):
        row, source = rows[y], pixels[y]
        red, green, blue = row[0], row[1], row[2]
        for i in range(width):
            red[i], green[i], blue[i] = source[i, 0], source[i, 1], source[i, 2]
        for k in order[:before]:
            if active[k]:
                jitter(row, k, factors[k], ZERO, shifts)
        if active[CONTRAST]:
            total += grey_sum(row)
    mean = np.float32(total / (height * width))
    for y in range(height):
        for k in order[before:]:
            if active[k]:
                jitter(rows[y], k, factors[k], mean, shifts)
        if grey:
            red, green, blue = rows[y, 0], rows[y, 1], rows[y, 2]
            for i in range(width):
                value = luma(red[i], green[i], blue[i])
                red[i], green[i], blue[i] = value, value, value
    if len(taps) > 1:
        blur(rows, taps, out)
    else:
        for y in range(height):
            for c in range(3):
                values, row = out[c, y], rows[y, c]
                for i in range(width):
                    values[i] = np.uint8(row[i])
    if solarize:
        every = out.reshape(-1)
        for i in range(len(every)):
            every[i] = min(every[i], ~every[i])  # of a byte and its complement, exactly one is below 128


@compiled
def luma(red: np.float32, green: np.float32, blue: np.float32) -> np.float32:
    """`color.luma` of a pixel."""
    grey: np.float32 = np.floor(red * RED + green * GREEN + blue * BLUE)
    return grey


@compiled
def grey_sum(row: Floats) -> int:
    """Of the grey values of a row [3, w]: whole numbers, so that their order does not matter."""
    red, green, blue, total = row[0], row[1], row[2], 0
    for i in range(len(red)):
        total += int(luma(red[i], green[i], blue[i]))
    return total


@compiled
def mixed(value: np.float32, factor: np.float32, other: np.float32) -> np.float32:
    """`color`'s blend; `other` comes times 1 - factor."""
    within: np.float32 = np.floor(min(max(value * factor + other, ZERO), TOP))
    return within


@compiled
def jitter(row: Floats, operation: int, factor: np.float32, mean: np.float32, shifts: Floats) -> None:
    """One operation of `color` on a row [3, w].  `mean`: of the image's grey values; `shifts` [3]: from each channel's hue, in sixths of a turn."""
    red, green, blue = row[0], row[1], row[2]
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
def blur(rows: Floats, taps: Floats, out: Bytes) -> None:
    """Rows [h, 3, w] under a symmetric kernel, down and then across, mirrored at the borders, rounded into `out` [3, h, w]."""
    height, _, width = rows.shape
    reach = len(taps) // 2
    flat = rows.reshape(height, 3 * width)
    down, across, wide = np.empty(3 * width, np.float32), np.empty(width, np.float32), np.empty(width + 2 * reach, np.float32)
    for y in range(height):
        here, weight = flat[y], taps[reach]
        for i in range(3 * width):
            down[i] = here[i] * weight
        for k in range(1, reach + 1):
            above, below, weight = flat[abs(y - k)], flat[min(y + k, 2 * (height - 1) - y - k)], taps[reach + k]
            for i in range(3 * width):
                down[i] += (above[i] + below[i]) * weight
        for c in range(3):
            middle, part = wide[reach : reach + width], down[c * width : (c + 1) * width]  # slices: numba vectorises no loop over sums of indices
            for i in range(width):
                middle[i] = part[i]
            for k in range(1, reach + 1):
                wide[reach - k], wide[reach + width - 1 + k] = wide[reach + k], wide[reach + width - 1 - k]
            weight = taps[reach]
            for i in range(width):
                across[i] = middle[i] * weight
            for k in range(1, reach + 1):
                left, right, weight = wide[reach - k : reach - k + width], wide[reach + k : reach + k + width], taps[reach + k]
                for i in range(width):
                    across[i] += (left[i] + right[i]) * weight
            blurred = out[c, y]
            for i in range(width):
                blurred[i] = np.uint8(np.rint(across[i]))
