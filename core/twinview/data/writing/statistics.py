"""Statistics of an image's pixels, and what a manifest says of all images."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from twinview.data.formats.npy_tiff import FULL


class Moments(NamedTuple):
    """Of the pixels of an image, by channel."""

    mean: tuple[float, ...]  # 0..1 of full scale
    square: tuple[float, ...]  # mean of the squares
    largest: tuple[int, ...]  # in the file's own values
    high: tuple[int, ...]  # the value that one pixel of a thousand is above


def moments(pixels: Tensor) -> Moments:
    """Of an image [C, H, W] uint8 or uint16, counted in whole numbers."""
    top, size = FULL[8 * pixels.element_size()], pixels[0].numel()
    levels = np.arange(top + 1)
    counts = [np.bincount(channel.numpy().ravel(), minlength=top + 1) for channel in pixels]
    return Moments(
        mean=tuple(int(n @ levels) / (top * size) for n in counts),
        square=tuple(int(n @ levels**2) / (top**2 * size) for n in counts),
        largest=tuple(int(n.nonzero()[0][-1]) for n in counts),
        high=tuple(int(np.searchsorted(n.cumsum(), 0.999 * size)) for n in counts),
    )


def measured(kinds: Mapping[str, int], found: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
    """What a manifest says of images, of which there are so many of each kind ("3x8") and these moments (of some).

    `channels` and `bits` of all, None where they mix (grey beside RGB counts as RGB); then for each channel `mean` and `std`, 0..1 of full
    scale, every image counting the same, the `largest` value, and `p99.9`, the mean of the values that one pixel of a thousand is above.
    """
    counts, depths = ({int(kind.split("x")[part]) for kind in kinds} for part in (0, 1))
    channels = max(counts) if len(counts) == 1 or counts == {1, 3} else None
    bits = max(depths) if len(depths) == 1 else None
    metadata = {"channels": channels, "bits": bits, "kinds": dict(kinds)}
    if not found or channels is None or bits is None:
        return {**metadata, "measured": 0}
    by_part = [np.array([[*one[part]] * (channels // len(one[part])) for one in found]) for part in range(len(Moments._fields))]
    mean, square, digits = by_part[0].mean(0), by_part[1].mean(0), 4 if bits == 8 else 7
    numbers = {"mean": mean, "std": np.sqrt((square - mean**2).clip(0))}
    rounded = {name: [round(float(x), digits) for x in values] for name, values in numbers.items()}
    values = {"largest": by_part[2].max(0), "p99.9": by_part[3].mean(0).round()}
    return {**metadata, "measured": len(found), **rounded, **{name: [int(x) for x in found] for name, found in values.items()}}
