"""View sampling for segmentation: a crop, and the picture that it was cut from."""
from __future__ import annotations

import numpy as np
import torch
from attrs import field

from twinview.hooks import hookimpl, part
from twinview.ops.checks import area_span, pixels, share
from twinview.values import Geometry, Size, Traits


@part
class CropAndWhole:
    """View 1 is a crop of the picture, mirrored by chance; view 2 the picture itself: the largest central box of the views' shape.

    The released code's segmentation views.  Every epoch draws anew; the released draws, made once for the whole run, are [data] frozen_draws.
    """

    size: tuple[int, int] = field(default=(320, 320), validator=pixels)  # height, width of both views
    scale: tuple[float, float] = field(default=(0.5, 1.0), validator=area_span)  # view 1's share of the picture's *sides*, not of its area
    flip: float = field(default=0.5, validator=share)  # chance that view 1 is mirrored

    @hookimpl
    def traits(self) -> Traits:
        """Notes its draws, from which `densesiam.grid_sample` replays the released rounding."""
        return Traits(gives=frozenset({"crop_draws"}))

    @hookimpl
    def sample_views(self, size: Size, rng: np.random.Generator) -> Geometry:
        """Two views, paired both ways.  Notes `crop_scale` r, `crop_row` and `crop_column` u: the crop begins at u (1 - r) of a side."""
        whole = central_box(size, self.size)
        scale = rng.uniform(*self.scale)
        row, column = rng.random(2)
        start, sides = whole[:2], whole[2:] - whole[:2]
        corner = start + np.array([column, row]) * (1 - scale) * sides
        crop = np.concatenate([corner, corner + scale * sides])
        return Geometry(
            boxes=torch.from_numpy(np.stack([crop, whole]).astype(np.float32)),
            flips=torch.tensor([rng.random() < self.flip, False]),
            source=torch.tensor(size, dtype=torch.float32),
            sizes=(self.size, self.size),
            pairs=((0, 1), (1, 0)),
            notes={name: torch.tensor(draw) for name, draw in (("crop_scale", scale), ("crop_row", row), ("crop_column", column))},
        )


def central_box(source: Size, shape: Size) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """x0 y0 x1 y1 in 0..1: the largest central box of `source` (height, width) that is as high to its width as `shape`."""
    narrow = (source[0] * shape[1]) / (source[1] * shape[0])  # its width, where its height is all of the source
    width, height = min(1.0, narrow), min(1.0, 1 / narrow)
    return np.array([(1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2])
