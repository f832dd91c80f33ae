"""The numbers of numpy's `Generator(Philox(key=...))`, one by one: to the bit what it gives, from the same 128 bits.

A state is an array [10] of uint64: the counter, the key (2), how many numbers of the current block are taken, whether half a number is left, that
half, and the block (4).  Philox is counted, not stepped (Salmon et al. 2011): a block is a function of counter and key.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinview.ops.compiled.build import compiled, inner

State = NDArray[np.uint64]

COUNTER, KEY, TAKEN, HALVED, HALF, BLOCK = 0, 1, 3, 4, 5, 6
SIZE = 10  # of a state
ROUNDS = 10
MULTIPLY = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
LOW, FOUR, ONE, ZERO, BITS_32, BITS_11 = (np.uint64(n) for n in (0xFFFFFFFF, 4, 1, 0, 32, 11))


@compiled
def begin(state: State, key: NDArray[np.uint64]) -> None:
    """As a new generator of this key [2] is."""
    state[COUNTER], state[KEY], state[KEY + 1], state[TAKEN], state[HALVED] = ZERO, key[0], key[1], FOUR, ZERO


@inner
def _high(a: np.uint64, b: np.uint64) -> Any:
    """The upper 64 bits of the product of two numbers of 64, by halves."""
    a0, a1, b0, b1 = a & LOW, a >> BITS_32, b & LOW, b >> BITS_32
    middle = a1 * b0 + ((a0 * b0) >> BITS_32)
    return a1 * b1 + (middle >> BITS_32) + (((middle & LOW) + a0 * b1) >> BITS_32)


@inner
def bits_64(state: State) -> Any:
    """The next 64 bits."""
    if state[TAKEN] < FOUR:
        value = state[BLOCK + np.intp(state[TAKEN])]
        state[TAKEN] += ONE
        return value
    state[COUNTER] += ONE
    c0, c1, c2, c3, k0, k1 = state[COUNTER], ZERO, ZERO, ZERO, state[KEY], state[KEY + 1]
    for _ in range(ROUNDS):
        h0, l0, h1, l1 = _high(MULTIPLY[0], c0), MULTIPLY[0] * c0, _high(MULTIPLY[1], c2), MULTIPLY[1] * c2
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = k0 + WEYL[0], k1 + WEYL[1]
    state[BLOCK], state[BLOCK + 1], state[BLOCK + 2], state[BLOCK + 3], state[TAKEN] = c0, c1, c2, c3, ONE
    return c0


@inner
def bits_32(state: State) -> Any:
    """The next 32 bits: the lower half of 64, then the upper."""
    if state[HALVED]:
        state[HALVED] = ZERO
        return state[HALF]
    value = bits_64(state)
    state[HALVED], state[HALF] = ONE, value >> BITS_32
    return value & LOW


@compiled
def random(state: State, out: NDArray[np.float64]) -> None:
    """`rng.random(len(out))`: in [0, 1)."""
    for i in range(len(out)):  # one place that takes bits, for machine code repeats what it calls
        out[i] = np.float64(bits_64(state) >> BITS_11) * (1.0 / 9007199254740992.0)


@compiled
def integer(state: State, n: Any) -> Any:
    """`rng.integers(n)` of 1 <= n < 2**32: 0 .. n - 1, by Lemire's product, drawn anew where that would favor some."""
    if n == 1:
        return 0
    least = (LOW - np.uint64(n - 1)) % np.uint64(n)
    while True:
        product = bits_32(state) * np.uint64(n)
        if (product & LOW) >= least:
            return np.intp(product >> BITS_32)


@compiled
def permutation(state: State, out: NDArray[np.int64]) -> None:
    """`rng.permutation(len(out))`, of at most 2**32: a place from the end on takes a random one of those up to it."""
    for i in range(len(out)):
        out[i] = i
    i = len(out) - 1
    while i > 0:
        mask = np.uint64(i)
        for shift in (1, 2, 4, 8, 16):
            mask |= mask >> np.uint64(shift)
        j = bits_32(state) & mask
        if j <= np.uint64(i):  # else drawn anew
            out[i], out[j] = out[j], out[i]
            i -= 1
