"""Random crops, for samplers of views."""
from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from twinview.values import Geometry

Box = tuple[int, int, int, int]  # x0 y0 x1 y1 in whole pixels

TRIES = 10  # before the central crop, as in torchvision


def random_resized_box(
    size: tuple[int, int],
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
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


def crops_geometry(
    source: tuple[int, int], boxes: Sequence[Box], side: int, flip: float, rng: np.random.Generator, notes: Mapping[str, float] | None = None
) -> Geometry:
    """Square views of `side` pixels from boxes of a `source` (height, width), each mirrored with chance `flip`, all paired both ways."""
    height, width = source
    noted = notes or {}
    numbers = torch.from_numpy(np.array(list(noted.values()), np.float32))  # three times as fast as torch.tensor: this runs for every image
    return Geometry(
        boxes=torch.from_numpy(np.array(boxes, np.float32) / np.array([width, height, width, height], np.float32)),
        flips=torch.from_numpy(rng.random(len(boxes)) < flip),
        source=torch.from_numpy(np.array(source, np.float32)),
        sizes=((side, side),) * len(boxes),
        pairs=tuple(itertools.permutations(range(len(boxes)), 2)),
        notes=dict(zip(noted, numbers.unbind())),
    )


def crops_batch(
    sizes: NDArray[np.int64], keys: NDArray[np.uint64], scales: Sequence[tuple[float, float]], ratio: tuple[float, float], side: int, flip: float,
) -> Geometry:
    """For `sample_views_batch`: what `random_resized_box` for each of `scales`, and then `crops_geometry`, give for each image, compiled.

    `sizes` [B, 2] and `keys` [B, 2] as the hook has them; tensors of the result have B first.
    """
    from twinview.ops.compiled.boxes import boxes_and_flips  # here: numba takes a second to import, and only data workers need it

    boxes, flips = np.empty((len(sizes), len(scales), 4), np.float32), np.empty((len(sizes), len(scales)), np.bool_)
    shape, logs = np.array(ratio, np.float64), np.array([math.log(ratio[0]), math.log(ratio[1])])
    boxes_and_flips(sizes, keys, np.array(scales, np.float64), shape, logs, TRIES, float(flip), boxes, flips)
    return Geometry(
        boxes=torch.from_numpy(boxes),
        flips=torch.from_numpy(flips),
        source=torch.from_numpy(sizes.astype(np.float32)),
        sizes=((side, side),) * len(scales),
        pairs=tuple(itertools.permutations(range(len(scales)), 2)),
    )
