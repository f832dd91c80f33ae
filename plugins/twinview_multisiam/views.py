"""View sampling: pairs of crops that show enough of the same place."""
from __future__ import annotations

import numpy as np
from attrs import field
from attrs.validators import ge, gt

from twinview.hooks import hookimpl, part
from twinview.ops.checks import area_span, share, span
from twinview.ops.crops import Box, crops_geometry, random_resized_box
from twinview.values import Geometry, Size


@part
class IoUCrops:
    """Two random resized crops, both drawn anew until they overlap by `min_iou` (MultiSiam, figure 2a).

    Redrawing both samples exactly the pairs of an ordinary sampler given that IoU >= `min_iou`.  After `tries` pairs the best one is kept
    and counted.  The gate favors large crops: compare the logged crop area before comparing thresholds.
    """

    min_iou: float = field(default=0.5, validator=share)  # intersection over union of the two boxes in the source
    size: int = field(default=224, validator=gt(0))  # pixels of each view's side
    scale: tuple[float, float] = field(default=(0.08, 1.0), validator=area_span)  # a crop's share of the image's area
    ratio: tuple[float, float] = field(default=(3 / 4, 4 / 3), validator=span)  # a crop's width : height
    tries: int = field(default=50, validator=ge(1))  # pairs, before the best one is kept
    flip: float = field(default=0.5, validator=share)  # chance that a view is mirrored, each by itself

    @hookimpl
    def sample_views(self, size: Size, rng: np.random.Generator) -> Geometry:
        """Two views, paired both ways; notes `tries`, the pairs drawn, and `fallback`, 1 where none was accepted."""
        first, second, iou, tries = self._draw_pair(size, rng)
        return crops_geometry(size, (first, second), self.size, self.flip, rng, {"tries": tries, "fallback": iou < self.min_iou})

    def _draw_pair(self, size: Size, rng: np.random.Generator) -> tuple[Box, Box, float, int]:
        """Both boxes, their IoU and how many pairs it took."""
        best: tuple[Box, Box, float] | None = None
        for tried in range(1, self.tries + 1):
            first = random_resized_box(size, rng, self.scale, self.ratio)
            second = random_resized_box(size, rng, self.scale, self.ratio)
            iou = box_iou(first, second)
            if iou >= self.min_iou:
                return first, second, iou, tried
            if best is None or iou > best[2]:
                best = first, second, iou
        assert best is not None  # tries >= 1
        if best[2] == 0:  # an alignment needs a place that both views show
            best = best[0], best[0], best[2]
        return *best, self.tries


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes of whole pixels; 0 where they do not meet."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / (_area(a) + _area(b) - both)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
