"""View sampling: two crops that need not meet, the masked one predicting the other."""
from __future__ import annotations

import numpy as np
from attrs import field
from attrs.validators import gt
from numpy.typing import NDArray

from twinview.hooks import hookimpl, part
from twinview.ops.checks import area_span, share, span
from twinview.ops.crops import crops_batch, crops_geometry, random_resized_box
from twinview.values import Geometry, Size


@part
class Crops:
    """Two random resized crops drawn independently, mirrored independently; view 0 is always online, view 1 always the target.

    The paper mirrors the whole image before it crops, which draws from the same law as mirroring the crop.
    """

    size: int = field(default=224, validator=gt(0))  # pixels of each view's side
    scale: tuple[float, float] = field(default=(0.08, 1.0), validator=area_span)  # a crop's share of the image's area
    ratio: tuple[float, float] = field(default=(3 / 4, 4 / 3), validator=span)  # a crop's width : height
    flip: float = field(default=0.5, validator=share)  # chance that a view is mirrored, each by itself

    @hookimpl
    def sample_views(self, size: Size, rng: np.random.Generator) -> Geometry:
        """Two boxes of whole pixels as fractions of the source, paired one way."""
        boxes = [random_resized_box(size, rng, self.scale, self.ratio) for _ in range(2)]
        return crops_geometry(size, boxes, self.size, self.flip, rng)._replace(pairs=((0, 1),))

    @hookimpl
    def sample_views_batch(self, sizes: NDArray[np.int64], keys: NDArray[np.uint64]) -> Geometry:
        """The same of a batch."""
        return crops_batch(sizes, keys, [self.scale] * 2, self.ratio, self.size, self.flip)._replace(pairs=((0, 1),))
