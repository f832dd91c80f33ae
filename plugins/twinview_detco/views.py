"""View sampling: two crops, and nine patches of a crop for each of them."""
from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from attrs import field
from attrs.validators import ge, gt
from numpy.typing import NDArray

from twinview.hooks import hookimpl, part
from twinview.ops import crops_geometry, random_resized_box
from twinview.ops.checks import area_span, share, span
from twinview.values import Geometry, Size, Traits

SIDE = 3  # patches along a side


@part
class GlobalAndPatches:
    """A query and a key view, and for each a set of nine patches, one from every cell of a 3 x 3 grid over a crop, in random order (DetCo, figure 2).

    Views 0 and 1 are the two crops, and the one pair; views 2 and 3 the crops that patches are cut from, once they have their photometry; the query's
    patches are the views 4 to 12, the key's 13 to 21.
    """

    size: int = field(default=224, validator=gt(0))  # pixels of the side of views 0 and 1
    patch_size: int = field(default=64, validator=gt(0))  # pixels of a patch's side
    canvas: int = field(default=0, validator=ge(0))  # side of the crop that patches are cut from, in their pixels; 0: 255 for patches of 64
    scale: tuple[float, float] = field(default=(0.2, 1.0), validator=area_span)  # share of the image's area, of views 0 and 1
    patch_scale: tuple[float, float] = field(default=(0.6, 1.0), validator=area_span)  # of the crop that patches are cut from
    patches_from: Literal["own", "global"] = "own"  # a crop and photometry of their own, or those of view 0 and of view 1
    ratio: tuple[float, float] = field(default=(3 / 4, 4 / 3), validator=span)  # a crop's width : height
    flip: float = field(default=0.5, validator=share)  # chance that a crop is mirrored, patches with it

    def __attrs_post_init__(self) -> None:
        self.canvas = self.canvas or round(self.patch_size * 255 / 64)
        if self.patch_size * SIDE > self.canvas:
            raise ValueError(f"canvas wants at least {self.patch_size * SIDE}, three patches of {self.patch_size}, not {self.canvas}")

    @hookimpl
    def traits(self) -> Traits:
        """Gives two sets of patches."""
        return Traits(gives=frozenset({"patches"}))

    @hookimpl
    def sample_views(self, size: Size, rng: np.random.Generator) -> Geometry:
        """Patches are cut out of the finished pictures of views 2 and 3, which no pair asks for."""
        crops = [random_resized_box(size, rng, self.scale, self.ratio) for _ in range(2)]
        whole = crops_geometry(size, crops, self.size, self.flip, rng)
        own = whole
        if self.patches_from == "own":
            own = crops_geometry(size, [random_resized_box(size, rng, self.patch_scale, self.ratio) for _ in range(2)], self.size, self.flip, rng)
        patches = np.concatenate([self.cut(own.boxes[view].numpy(), rng) for view in (0, 1)]).astype(np.float32)
        count, first = SIDE * SIDE, 0 if self.patches_from == "global" else 2
        return whole._replace(
            boxes=torch.cat([whole.boxes, own.boxes, torch.from_numpy(patches)]),
            flips=torch.cat([whole.flips, own.flips, own.flips.repeat_interleave(count)]),
            sizes=((self.size, self.size),) * 2 + ((self.canvas, self.canvas),) * 2 + ((self.patch_size, self.patch_size),) * (2 * count),
            pairs=((0, 1),),
            sets=(tuple(range(4, 4 + count)), tuple(range(4 + count, 4 + 2 * count))),
            draws=(0, 1, first, first + 1, *(first,) * count, *(first + 1,) * count),
            cut_from=(0, 1, 2, 3, *(2,) * count, *(3,) * count),
        )

    def cut(self, box: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
        """[9, 4] of a crop's box [4], fractions of the source: a patch at a random place of each cell, in random order."""
        cell = self.canvas // SIDE
        room = cell - self.patch_size
        corner = np.stack(np.meshgrid(range(SIDE), range(SIDE)), -1).reshape(-1, 2) * cell + rng.integers(room + 1, size=(SIDE * SIDE, 2))
        extent = (box[2:] - box[:2]) / self.canvas
        found = np.concatenate([corner, corner + self.patch_size], 1) * np.tile(extent, 2) + np.tile(box[:2], 2)
        return rng.permutation(found)
