"""View sampling: random resized crops, each by itself."""
from __future__ import annotations

import itertools

import numpy as np
import torch
from attrs import field
from attrs.validators import ge, gt

from twinview.hooks import hookimpl, part
from twinview.ops.crops import random_resized_box
from twinview.values import Geometry, Size
from twinview_byol.checks import rising, share


@part
class Crops:
    """Random resized crops drawn independently, mirrored independently, every view predicting every other (BYOL, appendix B)."""

    size: int = field(default=224, validator=gt(0))  # pixels of each view's side
    views: int = field(default=2, validator=ge(2))
    scale: tuple[float, float] = field(default=(0.08, 1.0), validator=rising)  # a crop's share of the image's area
    ratio: tuple[float, float] = field(default=(3 / 4, 4 / 3), validator=rising)  # a crop's width : height
    flip: float = field(default=0.5, validator=share)  # chance that a view is mirrored

    def __attrs_post_init__(self) -> None:
        if self.scale[1] > 1:
            raise ValueError(f"scale is a share of the image's area and wants numbers up to 1, not {list(self.scale)}")

    @hookimpl
    def sample_views(self, size: Size, rng: np.random.Generator) -> Geometry:
        """`views` boxes of whole pixels, as fractions of the source."""
        height, width = size
        boxes = np.array([random_resized_box(size, rng, self.scale, self.ratio) for _ in range(self.views)], np.float32)
        return Geometry(
            boxes=torch.from_numpy(boxes / np.array([width, height, width, height], np.float32)),
            flips=torch.from_numpy(rng.random(self.views) < self.flip),
            source=torch.from_numpy(np.array(size, np.float32)),
            sizes=((self.size, self.size),) * self.views,
            pairs=tuple(itertools.permutations(range(self.views), 2)),
        )
