"""Fixed positions: sines and cosines of places (Vaswani et al. 2017; MAE; SiameseIM)."""
from __future__ import annotations

import torch
from torch import Tensor

from twinview.values import Size


def sines(places: Tensor, channels: int) -> Tensor:
    """s(t; n): places [...] -> [..., n] float32, sin(t w_k) for all k, then cos(t w_k), with w_k = 10000^(-k / (n/2)).

    Angles are reckoned in float64, whatever the autocast.
    """
    half = channels // 2
    rates = 10000 ** (-torch.arange(half, device=places.device, dtype=torch.float64) / half)
    angles = places.double()[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1).float()


def sine_table(grid: Size, channels: int, *, row_first: bool, device: torch.device | None = None) -> Tensor:
    """[h*w, C], row by row: the cell at (row a, column b) has [s(a; C/2), s(b; C/2)], or [s(b), s(a)] without `row_first`."""
    height, width = grid
    rows = sines(torch.arange(height, device=device), channels // 2)[:, None].expand(-1, width, -1)
    columns = sines(torch.arange(width, device=device), channels // 2)[None].expand(height, -1, -1)
    return torch.cat([rows, columns] if row_first else [columns, rows], -1).flatten(0, 1)
