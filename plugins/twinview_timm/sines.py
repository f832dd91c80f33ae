"""Fixed positions: sines and cosines of a cell's row and column (MAE; SiameseIM)."""
from __future__ import annotations

import torch
from torch import Tensor

from twinview.values import Size


def sines(places: Tensor, width: int) -> Tensor:
    """s(t) = [sin(t w_k), cos(t w_k)], w_k = 10000^(-k / (width/2)), all sines first: [N] float -> [N, width] float32."""
    k = torch.arange(width // 2, device=places.device, dtype=torch.float64)
    angles = places[:, None].double() * 10000 ** (-k / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def table(grid: Size, width: int, *, row_first: bool, device: torch.device | None = None) -> Tensor:
    """[h * w, width]: for the cell at (row a, column b) [s(a), s(b)] of width/2 each, or [s(b), s(a)]."""
    height, across = grid
    rows = sines(torch.arange(height, device=device), width // 2)[:, None].expand(-1, across, -1)
    columns = sines(torch.arange(across, device=device), width // 2)[None].expand(height, -1, -1)
    return torch.cat([rows, columns] if row_first else [columns, rows], -1).flatten(0, 1)
