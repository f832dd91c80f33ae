"""Which cells of two views show the same place: those whose centers lie near each other in the source (PixPro, section 3.1)."""
from __future__ import annotations

import torch
from torch import Tensor

from twinview.values import Geometry, Size, cell_centers


def pixel_bounds(geometry: Geometry, view: int) -> Tensor:
    """[B, 4]: left, top, right, bottom of a view, from the middle of its first pixel to that of its last, in fractions of W - 1 and H - 1.

    Left and right change places where the view is mirrored.  These are the released coordinates: fractions of each side, so that in an image
    that is not square a distance along the shorter side counts for more.
    """
    sides = geometry.source.flip(-1)  # [B, 2] width, height
    spans = (sides - 1).clamp(min=1)
    box = geometry.boxes[:, view]
    first, last = box[:, :2] * sides / spans, (box[:, 2:] * sides - 1) / spans
    left, right = torch.where(geometry.flips[:, view], last[:, 0], first[:, 0]), torch.where(geometry.flips[:, view], first[:, 0], last[:, 0])
    return torch.stack([left, first[:, 1], right, last[:, 1]], 1)


def near(online: Tensor, target: Tensor, grids: tuple[Size, Size], distance: float) -> Tensor:
    """[B, P, P'] bool: cells whose centers are less than `distance` apart, in diagonals of the larger cell (PixPro, eq. 1).

    `online`, `target` [B, 4]: bounds of the two views; `grids`: their cells (height, width).  A cell may be near many, or none.
    """
    middles, diagonals = [], []
    for bounds, (height, width) in zip((online, target), grids):
        extent = bounds[:, 2:] - bounds[:, :2]  # negative where mirrored
        middles.append(bounds[:, None, :2] + cell_centers((height, width), bounds.device).to(bounds.dtype) * extent[:, None])
        diagonals.append((extent / extent.new_tensor([width, height])).norm(dim=1))
    apart = torch.hypot(*((middles[0][:, :, None, axis] - middles[1][:, None, :, axis]) for axis in (0, 1)))
    return apart / torch.maximum(*diagonals)[:, None, None] < distance
