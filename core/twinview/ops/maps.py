"""Small geometry on feature maps."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.values import Alignment, Size, Step


def unflip(maps: Tensor, flips: Tensor) -> Tensor:
    """Maps [B, C, h, w] of views of which `flips` [B] bool were mirrored, reversed along their width: as if none had been."""
    return torch.where(flips[:, None, None, None], maps.flip(-1), maps)


def resize_map(maps: Tensor, grid: Size) -> Tensor:
    """Maps [B, C, h, w] on another `grid` (height, width) of the same frame: cell means to a coarser one, bilinear to a finer one."""
    if tuple(maps.shape[2:]) == tuple(grid):
        return maps
    if maps.shape[2] >= grid[0] and maps.shape[3] >= grid[1]:
        return F.adaptive_avg_pool2d(maps, grid)
    return F.interpolate(maps, grid, mode="bilinear", align_corners=False)


def hide_pixels(images: Tensor, hidden: Tensor, stride: int) -> Tensor:
    """Images [B, C, H, W] with the pixels of hidden cells at 0, the mean color where images are normalized.

    `hidden` [B, h*w] bool, cells of `stride` pixels, ceil(H / stride) x ceil(W / stride).
    """
    height, width = images.shape[-2:]
    cells = hidden.view(len(images), 1, -(-height // stride), -(-width // stride))
    whole = cells.repeat_interleave(stride, 2).repeat_interleave(stride, 3)
    return images.masked_fill(whole[..., :height, :width], 0)


def hide_cells(maps: Tensor, hidden: Tensor) -> Tensor:
    """Maps [B, C, h, w] with the hidden cells, [B, h*w] bool, at 0."""
    return maps.masked_fill(hidden.view(len(maps), 1, *maps.shape[-2:]), 0)


def visible_cells(step: Step, view: int, maps: Tensor) -> Tensor:
    """[B, h, w]: 1 where the online branch saw the cell of a view's `maps` [B, C, h, w], 0 where it was hidden, wholly or in part."""
    hidden = step.hidden[view]
    if hidden is None:
        return maps.new_ones(len(maps), *maps.shape[2:])
    own = step.online[view].at("cells").shape[2:]
    unseen = hidden.to(maps.dtype).view(-1, 1, *own)  # of nothing hidden comes exactly 0; weights that should sum to 1 do so but nearly
    return (resize_map(unseen, (maps.shape[2], maps.shape[3]))[:, 0] == 0).to(maps.dtype)


def seen_twice(step: Step, alignment: Alignment, target: int) -> Tensor:
    """The alignment's weight [B, h', w'] without the cells of view `target` that the online branch did not see.

    For losses that take view `target` from the online branch too; an alignment's own weight leaves out what the target branch did not see.
    """
    if step.hidden[target] is None or step.branches.target is step.branches.online:  # without an average they weigh nothing already
        return alignment.weight
    seen = visible_cells(step, target, step.online[target].at("cells"))
    return alignment.weight * alignment.target(seen[:, None])[:, 0].clamp(0, 1)
