"""Alignment: bilinear samples of both maps at the same places of the overlap (DenseSiam, grid sampling)."""
from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from attrs import field
from attrs.validators import ge
from torch import Tensor
from torch.nn import functional as F

from twinview.hooks import hookimpl, part
from twinview.ops import resize_map
from twinview.ops.means import wide
from twinview.values import Alignment, Geometry, Size, Step, Traits, box_area, cell_centers


@part
class GridSample:
    """A grid of points over what two views both show, and both maps sampled there; exact for any boxes and flips.

    Points that lie in a map's outer half cells take the border's value.
    """

    points: Literal["overlap", "online"] = "overlap"  # uniform over the overlap; or the middles of the online view's cells
    grid: int = field(default=0, validator=ge(0))  # G points along each side of the overlap; 0: as many as the online view has cells
    replay: bool = False  # the released code's segmentation crops, rounded to whole cells as there: the whole view's map is cropped and resized

    def __attrs_post_init__(self) -> None:
        if self.grid and (self.replay or self.points == "online"):
            raise ValueError('grid is for points = "overlap" without replay; leave it out')
        if self.replay and self.points == "online":
            raise ValueError('replay has points of its own; leave points = "online" out')

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells, and to replay the numbers that the crop was drawn from."""
        return Traits(needs=frozenset({"cells", "crop_draws"} if self.replay else {"cells"}))

    @hookimpl
    def align(self, step: Step, online: int, target: int) -> Alignment:
        """Weight 0 where a point lies outside the target; notes `grid_sample/empty`, the share of images whose views do not meet."""
        geometry = step.geometry
        step.note("grid_sample/empty", (box_area(geometry.overlap(online, target)) <= 0).float())
        grid = step.grids[0 if self.replay else online]
        if self.replay:
            crop, whole = partial(resize_map, grid=grid), partial(replayed, geometry=geometry, grid=grid)
            weight = torch.ones(len(geometry.boxes), *grid, device=geometry.boxes.device)
            return Alignment(online=crop if online == 0 else whole, target=whole if online == 0 else crop, weight=weight)
        if self.points == "online":
            places = geometry.centers(online, grid)
            inside = geometry.to_view(places, target)
            weight = ((inside >= 0) & (inside <= 1)).all(-1).float().view(-1, *grid)
            return Alignment(online=partial(resize_map, grid=grid), target=sampler(geometry, places, target, grid), weight=weight)
        grid = (self.grid, self.grid) if self.grid else grid
        places, weight = overlap_points(geometry, online, target, grid)
        return Alignment(online=sampler(geometry, places, online, grid), target=sampler(geometry, places, target, grid), weight=weight)


def overlap_points(geometry: Geometry, online: int, target: int, grid: Size) -> tuple[Tensor, Tensor]:
    """Places [B, h*w, 2] in the source, uniform over the overlap of two views: x_k = l + (k + 1/2) / w * width; and their weight [B, h, w].

    Images whose views do not meet have weight 0, and harmless places.
    """
    box = geometry.overlap(online, target)
    meets = box_area(box) > 0
    box = torch.where(meets[:, None], box, geometry.boxes[:, online])
    places = box[:, None, :2] + cell_centers(grid, box.device) * (box[:, None, 2:] - box[:, None, :2])
    return places, meets.float()[:, None, None].expand(-1, *grid)


def sampler(geometry: Geometry, places: Tensor, view: int, grid: Size) -> partial[Tensor]:
    """The operator that samples a view's maps at `places` [B, h*w, 2] of the source."""
    return partial(sample_map, points=geometry.to_view(places, view).view(-1, *grid, 2))


def sample_map(maps: Tensor, points: Tensor) -> Tensor:
    """Maps [B, C, H, W] at points [B, h, w, 2], fractions of the view's own frame -> [B, C, h, w], float32 or wider."""
    with torch.autocast(maps.device.type, enabled=False):
        maps = wide(maps)
        return F.grid_sample(maps, 2 * points.to(maps.dtype) - 1, mode="bilinear", padding_mode="border", align_corners=False)


# ---- the released rounding
def replayed(maps: Tensor, geometry: Geometry, grid: Size) -> Tensor:
    """The whole view's maps [B, C, H, W] as the released code crops, resizes and mirrors them -> [B, C, *grid].

    The crop's draws are taken again in whole cells: side int(r H), offset round((H - side) u).
    """
    scale, draws = geometry.notes["crop_scale"], (geometry.notes["crop_column"], geometry.notes["crop_row"])
    x, y = (replayed_places(scale, draw, n, side) for draw, n, side in zip(draws, grid[::-1], maps.shape[:1:-1]))
    x = torch.where(geometry.flips[:, 0, None], x.flip(1), x)
    return sample_map(maps, torch.stack([x[:, None, :].expand(-1, *grid), y[:, :, None].expand(-1, *grid)], -1))


def replayed_places(scale: Tensor, draw: Tensor, n: int, side: int) -> Tensor:
    """[B, n]: where n outputs lie along a map of `side` cells, as fractions, for crops of `scale` [B] that begin at `draw` [B] of what is left.

    A crop of s cells from o on, resized bilinearly, reads (o + clamp((j + 1/2) s / n - 1/2, 0, s - 1) + 1/2) / side.
    """
    length = (scale.double() * side).floor()
    offset = ((side - length) * draw.double()).round()
    own = (torch.arange(n, device=scale.device, dtype=torch.float64) + 0.5) * length[:, None] / n - 0.5
    return (offset[:, None] + torch.minimum(own.clamp(min=0), length[:, None] - 1) + 0.5) / side
