"""Small geometry on feature maps."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.values import Size


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
