"""View sampling: two large crops, and small ones of small places."""
from __future__ import annotations

import numpy as np
from attrs import field
from attrs.validators import ge, gt
from numpy.typing import NDArray

from twinview.hooks import hookimpl, part
from twinview.ops import crops_batch, crops_geometry, random_resized_box
from twinview.ops.checks import area_span, share, span
from twinview.values import Geometry, Size


@part
class MultiCrop:
    """Two large views and `local` small ones, each a random resized crop by itself; every view predicts both large ones (SwAV, section 3.2)."""

    size: int = field(default=224, validator=gt(0))  # pixels of a large view's side
    local: int = field(default=6, validator=ge(0))  # small views
    local_size: int = field(default=0, validator=ge(0))  # pixels of a small view's side; 0: 3/7 of the large one's, 96 of 224
    scale: tuple[float, float] = field(default=(0.14, 1.0), validator=area_span)  # a large crop's share of the image's area
    local_scale: tuple[float, float] = field(default=(0.05, 0.14), validator=area_span)  # a small crop's
    ratio: tuple[float, float] = field(default=(3 / 4, 4 / 3), validator=span)  # a crop's width : height
    flip: float = field(default=0.5, validator=share)  # chance that a view is mirrored

    @hookimpl
    def sample_views(self, size: Size, rng: np.random.Generator) -> Geometry:
        """Views 0 and 1 are large.  A pair for each ordered two views of which the second is large."""
        boxes = [random_resized_box(size, rng, scale, self.ratio) for scale in self._scales()]
        return self._paired(crops_geometry(size, boxes, self.size, self.flip, rng))

    @hookimpl
    def sample_views_batch(self, sizes: NDArray[np.int64], keys: NDArray[np.uint64]) -> Geometry:
        """The same of a batch."""
        return self._paired(crops_batch(sizes, keys, self._scales(), self.ratio, self.size, self.flip))

    def _scales(self) -> list[tuple[float, float]]:
        return [self.scale] * 2 + [self.local_scale] * self.local

    def _paired(self, geometry: Geometry) -> Geometry:
        small = self.local_size or max(1, round(self.size * 3 / 7))
        return geometry._replace(
            sizes=((self.size, self.size),) * 2 + ((small, small),) * self.local,
            pairs=tuple((view, large) for large in (0, 1) for view in range(2 + self.local) if view != large),
        )
