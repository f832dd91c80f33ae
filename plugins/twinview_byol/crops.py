"""View sampling: random resized crops, each by itself."""
from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
from attrs import field
from attrs.validators import ge, gt
from numpy.typing import NDArray

from twinview.hooks import hookimpl, part
from twinview.ops.checks import area_span, share, span
from twinview.ops.crops import crops_batch, crops_geometry, random_resized_box
from twinview.values import Geometry, Size


@part
class Crops:
    """Random resized crops drawn independently, mirrored independently, every view predicting every other (BYOL, appendix B).

    One view has no pairs: for methods that learn from a view by itself.
    `pairs = "one_way"`: a view predicts those after it alone; of two, the first is the query and the second the key (MoCo).
    """

    size: int = field(default=224, validator=gt(0))  # pixels of each view's side
    views: int = field(default=2, validator=ge(1))  # 1: no pairs, for losses that look at one view
    scale: tuple[float, float] = field(default=(0.08, 1.0), validator=area_span)  # a crop's share of the image's area
    ratio: tuple[float, float] = field(default=(3 / 4, 4 / 3), validator=span)  # a crop's width : height
    flip: float = field(default=0.5, validator=share)  # chance that a view is mirrored
    pairs: Literal["both_ways", "one_way"] = "both_ways"  # one_way: the first view of a pair stands before the second

    @hookimpl
    def sample_views(self, size: Size, rng: np.random.Generator) -> Geometry:
        """`views` boxes of whole pixels, as fractions of the source."""
        boxes = [random_resized_box(size, rng, self.scale, self.ratio) for _ in range(self.views)]
        return self._paired(crops_geometry(size, boxes, self.size, self.flip, rng))

    @hookimpl
    def sample_views_batch(self, sizes: NDArray[np.int64], keys: NDArray[np.uint64]) -> Geometry:
        """The same of a batch."""
        return self._paired(crops_batch(sizes, keys, [self.scale] * self.views, self.ratio, self.size, self.flip))

    def _paired(self, geometry: Geometry) -> Geometry:
        if self.pairs == "one_way":
            return geometry._replace(pairs=tuple(itertools.combinations(range(self.views), 2)))
        return geometry
