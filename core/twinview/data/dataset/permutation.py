"""A permutation of any size that is never written down: where a number goes, and where it came from, is worked out from a key.

A Feistel network over pairs of numbers (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): x in 0..n-1 is a pair (left, right), a cell
of a rectangle of a x b >= n; each round adds to one half what a keyed hash makes of the other; a result beyond n goes through the network again until
it falls below ("cycle walking"; the rectangle has less than a cells too many, so this is rare).  Constant memory, constant time for each number.
"""
from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from twinview.seeds import splitmix

Ints = NDArray[np.int64]
Bits = NDArray[np.uint64]
K = TypeVar("K", bound=np.generic)

ROUNDS = 16  # as many as make all orders of 2 to 6 samples equally likely, as counted; 8 leave patterns in sets of fewer than 100
STEP, SPREAD, HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93), np.uint64(32)


def keys_of(seed: int, numbers: Ints) -> Bits:
    """An independent key for each of some numbers."""
    with np.errstate(over="ignore"):
        return splitmix(np.uint64(seed) + STEP * (numbers.astype(np.uint64) + np.uint64(1)))


def permute(x: Ints, n: Ints | int, key: Bits | int) -> Ints:
    """Where each `x` goes among 0..n-1.  `n` and `key` are of all, or of each (then as long as `x`); n < 2^62."""
    return _walk(x, n, key, range(ROUNDS))


def unpermute(y: Ints, n: Ints | int, key: Bits | int) -> Ints:
    """The inverse of `permute`."""
    return _walk(y, n, key, range(ROUNDS - 1, -1, -1))


def _walk(x: Ints, n: Ints | int, key: Bits | int, rounds: range) -> Ints:
    size, keys = np.asarray(n, np.int64), np.asarray(key, np.uint64)
    width = _root(size)
    height = -(-size // np.maximum(width, 1))
    found = _rounds(x, width, height, keys, rounds)
    beyond = np.flatnonzero(found >= size)
    while len(beyond):
        again = _rounds(found[beyond], _of(width, beyond), _of(height, beyond), _of(keys, beyond), rounds)
        found[beyond] = again
        beyond = beyond[again >= _of(size, beyond)]
    return found


def _rounds(x: Ints, width: Ints, height: Ints, keys: Bits, rounds: range) -> Ints:
    right, left = np.divmod(x, np.maximum(width, 1))
    forward = rounds.step > 0
    with np.errstate(over="ignore"):
        for i in rounds:
            state = keys + STEP * np.uint64(i + 1)
            if i % 2 == 0:
                left = _shifted(left, _hash(state, right, width), width, forward)
            else:
                right = _shifted(right, _hash(state, left, height), height, forward)
    found: Ints = right * width + left
    return found


def _hash(state: Bits, half: Ints, size: Ints) -> Ints:
    """A number below `size` (at most 2^31) from a key and the other half."""
    bits = splitmix(state ^ (half.view(np.uint64) * SPREAD))
    found: Ints = (((bits >> HALF) * size.astype(np.uint64)) >> HALF).view(np.int64)
    return found


def _shifted(half: Ints, by: Ints, size: Ints, forward: bool) -> Ints:
    """half + by, or half - by, modulo size."""
    moved = half + by if forward else half - by
    found: Ints = np.where(moved >= size, moved - size, moved) if forward else np.where(moved < 0, moved + size, moved)
    return found


def _root(n: Ints) -> Ints:
    """The least number whose square is at least n."""
    found = np.sqrt(n.astype(np.float64)).astype(np.int64)
    found = found - (found * found > n)  # floats have 53 bits
    root: Ints = found + (found * found < n)
    return root


def _of(values: NDArray[K], rows: Ints) -> NDArray[K]:
    """Those of some rows, or the one that is of all."""
    return values if values.ndim == 0 else values[rows]
