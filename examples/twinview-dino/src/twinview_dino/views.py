"""Multi-crop (section 3.1): the target sees two large crops, the online branch all of them."""
from __future__ import annotations

import numpy as np
from attrs import field
from attrs.validators import ge, gt

from twinview import hookimpl, part
from twinview.ops import crops_geometry, random_resized_box
from twinview.ops.checks import area_span, share
from twinview.values import Geometry, Size


@part
class MultiCrop:
    """Two large views and `local` small ones; a pair for every view and every large one that is another."""

    size: int = field(default=224, validator=gt(0))  # pixels of a large view's side
    local: int = field(default=8, validator=ge(0))  # small views
    local_size: int = field(default=96, validator=gt(0))  # pixels of a small view's side
    scale: tuple[float, float] = field(default=(0.4, 1.0), validator=area_span)  # a large crop's share of the image's area
    local_scale: tuple[float, float] = field(default=(0.05, 0.4), validator=area_span)  # a small crop's
    flip: float = field(default=0.5, validator=share)  # chance that a view is mirrored

    @hookimpl
    def sample_views(self, size: Size, rng: np.random.Generator) -> Geometry:
        """Views 0 and 1 are large."""
        scales = [self.scale] * 2 + [self.local_scale] * self.local
        boxes = [random_resized_box(size, rng, scale) for scale in scales]
        return crops_geometry(size, boxes, self.size, self.flip, rng)._replace(
            sizes=((self.size, self.size),) * 2 + ((self.local_size, self.local_size),) * self.local,
            pairs=tuple((view, large) for large in (0, 1) for view in range(len(boxes)) if view != large),
        )
