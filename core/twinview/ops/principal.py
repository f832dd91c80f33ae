"""Feature maps as colors: their three main directions, kept as much the same as they can be from one moment to the next."""
from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def principal(cells: Tensor, like: Tensor | None = None) -> Tensor:
    """Maps [B, C, h, w] -> [B, 3, h, w]: scores along the three main directions of all their cells, each of deviation 1.

    Directions have no sign and may change places: `like` [B, 3, h, w], scores of the same images from another moment, turns them to agree with it
    (orthogonal Procrustes).  Without it the sign is such that the third moment is not negative.
    """
    rows = cells.detach().float().movedim(1, -1).flatten(0, 2)
    rows = rows - rows.mean(0)
    found = torch.zeros(len(rows), 3)
    if rows.isfinite().all() and len(rows) > 1:
        u, s, _ = torch.linalg.svd(rows.cpu(), full_matrices=False)
        n = min(3, u.shape[1])
        real = s[:n] > s.max().clamp(min=1e-12) * 1e-5
        found[:, :n] = torch.where(real, u[:, :n] * len(rows) ** 0.5, 0)
    shape = (cells.shape[0], *cells.shape[2:], 3)
    if like is None or like.shape != (cells.shape[0], 3, *cells.shape[2:]):
        found = found * torch.where((found**3).sum(0) < 0, -1.0, 1.0)
    else:
        u, _, v = torch.linalg.svd(found.T @ like.float().movedim(1, -1).flatten(0, 2))
        found = found @ (u @ v)
    return found.view(shape).movedim(-1, 1)


def colors_of(scores: Tensor) -> Tensor:
    """Scores [B, 3, h, w] of deviation about 1 -> [B, 3, h, w] uint8; two deviations to either side fill the range."""
    return ((scores / 2).clamp(-1, 1) * 0.5 + 0.5).mul(255).round().byte()
