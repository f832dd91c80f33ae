"""View sampling: two crops of an image that is mirrored before it is cropped, both or neither."""
from __future__ import annotations

import numpy as np
import torch
from attrs import field
from attrs.validators import gt

from twinview.hooks import hookimpl, part
from twinview.ops import crops_geometry, random_resized_box
from twinview.ops.checks import area_span, share, span
from twinview.values import Geometry, Size


@part
class Crops:
    """Two random resized crops, paired one way; one coin mirrors both, so that windows lie the same way round in each (ReSim, section 3.2)."""

    size: int = field(default=224, validator=gt(0))  # pixels of each view's side
    scale: tuple[float, float] = field(default=(0.2, 1.0), validator=area_span)  # a crop's share of the image's area
    ratio: tuple[float, float] = field(default=(3 / 4, 4 / 3), validator=span)  # a crop's width : height
    flip: float = field(default=0.5, validator=share)  # chance that both are mirrored

    @hookimpl
    def sample_views(self, size: Size, rng: np.random.Generator) -> Geometry:
        """View 0 is the query, view 1 the key."""
        boxes = [random_resized_box(size, rng, self.scale, self.ratio) for _ in range(2)]
        flips = torch.full((2,), bool(rng.random() < self.flip))
        return crops_geometry(size, boxes, self.size, 0.0, rng)._replace(flips=flips, pairs=((0, 1),))
