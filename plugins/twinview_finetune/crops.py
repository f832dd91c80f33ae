"""Crops of images at a random scale, for segmentation and detection."""
from __future__ import annotations

import torch
from attrs import field
from numpy.random import Generator

from twinview.hooks import hookimpl, part
from twinview.ops.checks import pixels, share, span
from twinview.values import Geometry, Size


@part
class ScaledCrops:
    """One view: the image at `base` times a random scale, a crop of `size` out of it, mirrored with chance `flip`.

    Where the scaled image is smaller than the crop, the scale is raised until it covers it: nothing is padded.  scale = [1, 1] with base = size is
    the whole image, squeezed.
    """

    size: tuple[int, int] = field(validator=pixels)  # height, width of the crop in pixels
    base: tuple[int, int] = field(validator=pixels)  # height, width of the whole image at scale 1; its shape is kept within this (mmsegmentation)
    scale: tuple[float, float] = field(default=(0.5, 2.0), validator=span)
    flip: float = field(default=0.5, validator=share)

    @hookimpl
    def sample_views(self, size: Size, rng: Generator) -> Geometry:
        """A single view, in no pair."""
        height, width = size
        squeezed = self.size == self.base and self.scale == (1.0, 1.0)
        times = float(rng.uniform(*self.scale)) * min(self.base[0] / height, self.base[1] / width)  # pixels of the scaled image for one of the source
        least = max(self.size[0] / height, self.size[1] / width)
        h, w = (1.0, 1.0) if squeezed else (min(1.0, n / (side * max(times, least))) for n, side in zip(self.size, size))
        y, x = float(rng.uniform()) * (1 - h), float(rng.uniform()) * (1 - w)
        return Geometry(
            boxes=torch.tensor([[x, y, x + w, y + h]]),
            flips=torch.tensor([bool(rng.random() < self.flip)]),
            source=torch.tensor(size),
            sizes=(self.size,),
            pairs=(),
            notes={"scale": torch.tensor(max(times, least), dtype=torch.float32)},
        )
