"""Alignment of the two branches' maps (MultiSiam, figure 2b).  Both maps are flipped back first; from there every box is free of flips."""
from __future__ import annotations

from functools import partial

import torch
from attrs import field
from attrs.validators import ge
from torch import Tensor

from twinview.hooks import hookimpl, part
from twinview.ops.maps import resize_map, unflip
from twinview.ops.vision import import_torchvision
from twinview.values import Alignment, Geometry, Size, Step, Traits, box_area

NEEDS = frozenset({"cells"})


@part
class RoI:
    """RoIAlign of the intersection on both maps: cell i of the one shows the same place as cell i of the other."""

    size: int = field(default=0, validator=ge(0))  # cells of the common grid's side; 0 = the online view's own grid

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells."""
        return Traits(needs=NEEDS)

    @hookimpl
    def align(self, step: Step, online: int, target: int) -> Alignment:
        """One region an image and view, in that view's own cells."""
        geometry, grid = step.geometry, (self.size, self.size) if self.size else common_grid(step, online)
        meets = shared_weight(geometry, online, target, grid)

        def region(view: int) -> Tensor:
            inside = intersection_in_view(geometry, online, target, view)
            return torch.where(meets[:, :1, 0] > 0, inside, inside.new_tensor([0.0, 0.0, 1.0, 1.0]))  # no empty region, though its weight is 0

        return Alignment(
            online=partial(crop_map, flips=geometry.flips[:, online], region=region(online), grid=grid),
            target=partial(crop_map, flips=geometry.flips[:, target], region=region(target), grid=grid),
            weight=meets,
        )


@part
class Offset:
    """Nothing is resampled: the predictor is told how far the target's cell of the same index lies from the online one."""

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells; two channels of extra, x and y."""
        return Traits(needs=NEEDS, extra=2)

    @hookimpl
    def align(self, step: Step, online: int, target: int) -> Alignment:
        """Identity after the flip-back; extra [B, 2, h, w] in sides of the online crop, within -1..1 where IoU >= 0.5."""
        same = same_index(step, online, target)
        online_box = step.geometry.boxes[:, online]
        side = (online_box[:, 2:] - online_box[:, :2])[..., None, None]
        height, width = same.weight.shape[1:]
        return same._replace(extra=displacement(step.geometry, online, target, (height, width)) / side)


@part
class Unaligned:
    """The same index in both maps, whatever they show: what an alignment has to beat."""

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells."""
        return Traits(needs=NEEDS)

    @hookimpl
    def align(self, step: Step, online: int, target: int) -> Alignment:
        """Identity after the flip-back."""
        return same_index(step, online, target)


def same_index(step: Step, online: int, target: int) -> Alignment:
    """Both maps flipped back, brought to the common grid, and otherwise left alone."""
    geometry, grid = step.geometry, common_grid(step, online)

    def operator(view: int, maps: Tensor) -> Tensor:
        return resize_map(unflip(maps, geometry.flips[:, view]), grid)

    return Alignment(online=partial(operator, online), target=partial(operator, target), weight=shared_weight(geometry, online, target, grid))


def common_grid(step: Step, online: int) -> Size:
    """The cells (h, w) of the online view's map."""
    return step.grids[online]


def shared_weight(geometry: Geometry, online: int, target: int, grid: Size) -> Tensor:
    """[B, h, w]: 1 in images whose two boxes meet, 0 in the others."""
    meets = (box_area(geometry.overlap(online, target)) > 0).float()
    return meets[:, None, None].expand(-1, *grid)


def intersection_in_view(geometry: Geometry, online: int, target: int, view: int) -> Tensor:
    """[B, 4]: the intersection of a pair's boxes as fractions of the unmirrored `view`."""
    both, box = geometry.overlap(online, target).float(), geometry.boxes[:, view].float()
    return (both - box[:, :2].repeat(1, 2)) / (box[:, 2:] - box[:, :2]).repeat(1, 2)


def displacement(geometry: Geometry, online: int, target: int, grid: Size) -> Tensor:
    """[B, 2, h, w]: from each online cell's middle to that of the target cell of the same index, (x, y) in fractions of the source."""
    plain = geometry._replace(flips=torch.zeros_like(geometry.flips))
    moved = plain.centers(target, grid) - plain.centers(online, grid)  # [B, h*w, 2]
    return moved.mT.reshape(-1, 2, *grid)


def crop_map(maps: Tensor, flips: Tensor, region: Tensor, grid: Size) -> Tensor:
    """RoIAlign of one region [B, 4] (fractions of the unmirrored view) from each map [B, C, h, w] -> [B, C, *grid], float32."""
    import_torchvision()
    from torchvision.ops import roi_align  # here: it takes a second to import, and checking a recipe needs none of it

    with torch.autocast(maps.device.type, enabled=False):
        height, width = maps.shape[2:]
        image = torch.arange(len(maps), device=maps.device)[:, None]
        cells = region.float() * torch.tensor([width, height, width, height], device=maps.device)
        found: Tensor = roi_align(unflip(maps.float(), flips), torch.cat([image, cells], 1), grid, sampling_ratio=2, aligned=True)
        return found
