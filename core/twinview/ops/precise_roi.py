"""Precise RoI pooling to one cell: the mean of a map's bilinear interpolant over a box, exactly."""
from __future__ import annotations

import torch
from torch import Tensor

from twinview.ops.means import wide


def precise_roi_mean(maps: Tensor, boxes: Tensor) -> Tensor:
    """Maps [B, C, h, w], boxes [B, K, 4] (x0 y0 x1 y1 in cells) -> [B, K, C], float32 or float64 (Jiang et al. 2018, arXiv 1807.11590, eq. 5).

        mean over the box = sum_yx m[y, x] T_y T_x / area,    T: integral of the unit tent around a sample

    Samples stand at whole numbers, and beyond the last one the interpolant falls to 0 within a cell.  torchvision's RoIAlign differs: it averages
    a few points of the interpolant in place of integrating it, puts samples at half numbers (`aligned`), and repeats the border's.
    0 for a box without area.
    """
    with torch.autocast(maps.device.type, enabled=False):
        maps = wide(maps)
        boxes = boxes.to(maps.dtype)
        x = tent_integrals(boxes[..., 0], boxes[..., 2], maps.shape[3])  # [B, K, w]
        y = tent_integrals(boxes[..., 1], boxes[..., 3], maps.shape[2])  # [B, K, h]
        area = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).clamp(min=torch.finfo(maps.dtype).tiny)
        rows = torch.einsum("bkh,bchw->bkcw", y, maps)
        return torch.einsum("bkcw,bkw->bkc", rows, x) / area[..., None]


def tent_integrals(start: Tensor, end: Tensor, samples: int) -> Tensor:
    """[..., samples]: from `start` to `end` [...], the integral of max(0, 1 - |t - i|) for each whole number i below `samples`."""
    place = torch.arange(samples, device=start.device, dtype=start.dtype)
    return _below(end[..., None] - place) - _below(start[..., None] - place)


def _below(t: Tensor) -> Tensor:
    """The integral of the tent around 0 up to t."""
    t = t.clamp(-1, 1)
    return 0.5 + t - 0.5 * t * t.abs()
