"""Cosines between predictions and targets, in fp32 whatever the autocast."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.means import weighted_mean, wide


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over channels, [B, C, ...] and [B, C, ...] -> [B, ...] float32 (float64 of float64); 0 where one of the two is zero."""
    with torch.autocast(a.device.type, enabled=False):
        return (F.normalize(wide(a), dim=1) * F.normalize(wide(b), dim=1)).sum(1)


def cosine_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Minus the mean cosine of [B, C] vectors, or of [B, C, h, w] cells with `weight` [B, h, w]: a scalar in [-1, 1].

    BYOL's eq. 2 is 2 + 2 times it.  No gradient goes to `target`.  With a weight it is the weighted mean; 0, without gradient, where all are 0.
    """
    return -weighted_mean(cosine(prediction, target.detach()), weight)


def cosine_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every cell of one map with every cell of another, [B, C, h, w] and [B, C, h', w'] -> [B, h*w, h'*w'] float32 (float64 of float64)."""
    with torch.autocast(a.device.type, enabled=False):
        one, other = (F.normalize(wide(x).flatten(2), dim=1) for x in (a, b))
        return one.mT @ other
