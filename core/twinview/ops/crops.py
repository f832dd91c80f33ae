"""Boxes of random crops: numpy only, for data workers."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TRIES = 10  # before the central crop, as in torchvision


def random_resized_box(
    size: tuple[int, int],
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """The box of a random resized crop (Szegedy et al. 2015): x0, y0, x1, y1 in whole pixels of an image of `size` (height, width).

    Its share of the area is uniform in `scale`, its width : height log-uniform in `ratio`, its place uniform; the law of torchvision's
    `RandomResizedCrop`.  A box that does not fit is drawn anew; after ten tries it is the largest central one within `ratio`.
    """
    height, width = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            y0, x0 = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return x0, y0, x0 + w, y0 + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    x0, y0 = (width - w) // 2, (height - h) // 2
    return x0, y0, x0 + w, y0 + h
