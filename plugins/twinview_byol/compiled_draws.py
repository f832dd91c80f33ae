"""The draws of `Photometry.draw_augment` for a batch, with the same numbers."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twinview.ops.compiled.build import compiled
from twinview.ops.compiled.philox import SIZE, begin, permutation, random

Bits = NDArray[np.uint64]
Floats = NDArray[np.float64]
Coins = NDArray[np.bool_]


@compiled
def draw(
    keys: Bits, shuffled: bool, together: bool, changed: bool, chances: Floats, factor: Floats, sigmas: Floats,
    order: NDArray[np.int64], factors: NDArray[np.float32], grey: Coins, sigma: NDArray[np.float32], solarize: Coins,
) -> None:
    """Fill `order` and `factors` [B, 4], `grey`, `sigma` and `solarize` [B] from generators of the `keys` [B, 2].

    `chances` [4]: of jitter, grey, blur and solarisation in this view, which is `changed` or not at all.  `factor` [3, 4]: what changes nothing, the
    lowest, the strength of each.  `sigmas`: the least and the most, in pixels of the reference, and the scale.
    """
    neutral, lowest, strengths = factor[0], factor[1], factor[2]
    state, drawn = np.zeros(SIZE, np.uint64), np.empty(9 if together else 13)
    coin, place = drawn[:4], drawn[4:9]
    for b in range(len(keys)):
        begin(state, keys[b])
        if shuffled:
            permutation(state, order[b])
        else:
            for i in range(4):
                order[b, i] = i
        random(state, drawn)
        for i in range(4):
            value = neutral[i]
            if changed and (coin[0] if together else drawn[9 + i]) < chances[0]:
                low = max(neutral[i] - strengths[i], lowest[i])
                value = low + place[i] * (neutral[i] + strengths[i] - low)
            factors[b, i] = np.float32(value)
        grey[b] = changed and coin[1] < chances[1]
        blurred = changed and coin[2] < chances[2]
        sigma[b] = np.float32(sigmas[2] * (sigmas[0] + place[4] * (sigmas[1] - sigmas[0]))) if blurred else np.float32(0)
        solarize[b] = changed and coin[3] < chances[3]
