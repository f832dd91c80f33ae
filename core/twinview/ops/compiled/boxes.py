"""Random resized crops of a batch: `random_resized_box` and the coins of `crops_geometry`, with the same numbers."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinview.ops.compiled.build import compiled, inner
from twinview.ops.compiled.philox import SIZE, State, begin, integer, random

Floats = NDArray[np.float64]


@compiled
def boxes_and_flips(
    sizes: NDArray[np.int64], keys: NDArray[np.uint64], scales: Floats, ratio: Floats, logs: Floats, tries: int, flip: float,
    boxes: NDArray[np.float32], flips: NDArray[np.bool_],
) -> None:
    """Fill `boxes` [B, V, 4] (x0 y0 x1 y1, fractions) and `flips` [B, V] of images of `sizes` [B, 2] (height, width).

    `keys` [B, 2]: of each image's generator.  `scales` [V, 2]: of each view's area.  `ratio` [2] of width to height, and its `logs`.
    """
    state, coins = np.zeros(SIZE, np.uint64), np.empty(len(scales))
    for b in range(len(sizes)):
        height, width = sizes[b]
        begin(state, keys[b])
        for v in range(len(scales)):
            x0, y0, x1, y1 = _box(state, height, width, scales[v], ratio, logs, tries)
            w, h = np.float32(width), np.float32(height)
            box = boxes[b, v]
            box[0], box[1], box[2], box[3] = np.float32(x0) / w, np.float32(y0) / h, np.float32(x1) / w, np.float32(y1) / h
        random(state, coins)
        for v in range(len(scales)):
            flips[b, v] = coins[v] < flip


@inner
def _box(state: State, height: int, width: int, scale: Floats, ratio: Floats, logs: Floats, tries: int) -> Any:
    drawn = np.empty(2)
    for _ in range(tries):
        random(state, drawn)
        area = height * width * (scale[0] + (scale[1] - scale[0]) * drawn[0])
        aspect = math.exp(logs[0] + (logs[1] - logs[0]) * drawn[1])
        w, h = np.intp(np.rint(math.sqrt(area * aspect))), np.intp(np.rint(math.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            y0 = integer(state, height - h + 1)
            x0 = integer(state, width - w + 1)
            return x0, y0, x0 + w, y0 + h
    w, h = np.intp(min(width, max(1, int(np.rint(height * ratio[1]))))), np.intp(min(height, max(1, int(np.rint(width / ratio[0])))))
    x0, y0 = (width - w) // 2, (height - h) // 2
    return x0, y0, x0 + w, y0 + h
