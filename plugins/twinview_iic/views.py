"""View sampling: one crop, once as it is and once mirrored by chance."""
from __future__ import annotations

import numpy as np
import torch
from attrs import field
from attrs.validators import gt, le

from twinview.hooks import hookimpl, part
from twinview.ops.checks import share
from twinview.values import Geometry, Size


@part
class Pair:
    """Two views of the same square of an image, the second mirrored by chance; view 0 predicts view 1 and they learn from one another.

    The square has `size / zoom` pixels of the image to a side, or the image's shorter side where that is less (the release fills up with black).
    """

    size: int = field(default=128, validator=gt(0))  # pixels of a view's side
    zoom: float = field(default=0.33, validator=[gt(0), le(1)])  # pixels of a view to one of the image
    flip: float = field(default=0.5, validator=share)  # chance that view 1 is mirrored

    @hookimpl
    def sample_views(self, size: Size, rng: np.random.Generator) -> Geometry:
        """One box, twice, paired one way."""
        height, width = size
        side = min(round(self.size / self.zoom), height, width)
        y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        box = torch.tensor([x / width, y / height, (x + side) / width, (y + side) / height])
        return Geometry(
            boxes=torch.stack([box, box]),
            flips=torch.tensor([False, rng.random() < self.flip]),
            source=torch.tensor(size, dtype=torch.float32),
            sizes=((self.size, self.size),) * 2,
            pairs=((0, 1),),
        )
