"""PixPro's propagation: every cell is told what the cells that resemble it say."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.means import wide


def propagate(x: Tensor, values: Tensor, *, gamma: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """y_i = sum_j max(cos(x_i, x_j), 0)^gamma w_j v_j over the cells of a map (PixPro, arXiv 2011.10043, eq. 3 and 4).

    `x` [B, C, h, w] says who resembles whom, `values` [B, D, h, w] what is handed on, `weight` [B, h, w] how much a cell's vote counts;
    gives [B, D, h, w] float32 (float64 of float64) whatever the autocast.
    Not divided by the sum of the similarities: a cosine behind it cannot tell.
    """
    with torch.autocast(x.device.type, enabled=False):
        directions = F.normalize(wide(x).flatten(2), dim=1)  # [B, C, P]
        similarity = (directions.mT @ directions).clamp(min=0).pow(gamma)  # [B, P, P], symmetric
        votes = wide(values).flatten(2)
        if weight is not None:
            votes = votes * weight.to(votes.dtype).flatten(1)[:, None]
        return torch.bmm(votes, similarity).view(*values.shape)
