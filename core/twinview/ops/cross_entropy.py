"""Cross-entropies between what two branches say, in fp32 whatever the autocast."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.means import weighted_mean, wide


def soft_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """D(p, z) = -sum_k softmax(sg z)_k log softmax(p)_k over channels, [B, K, ...] and [B, K, ...] -> [B, ...] (SimSiam, section 4.5).

    Nats; no gradient goes to `target`.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        return -(wide(target.detach()).softmax(1) * wide(prediction).log_softmax(1)).sum(1)


def soft_cross_entropy_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of `soft_cross_entropy` over vectors [B, K], or over cells [B, K, h, w] by `weight` [B, h, w]: a scalar, at least 0."""
    return weighted_mean(soft_cross_entropy(prediction, target), weight)


def info_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """InfoNCE within sets: query [B, K, C] and key [B, K, C] -> [B], nats, the mean of a set's K rows (van den Oord et al. 2018).

    Row k's positive is key k of its own set, the set's other keys are its negatives; both are L2-normalised here.  Gradient goes to both.
    """
    with torch.autocast(query.device.type, enabled=False):
        logits = F.normalize(wide(query), dim=2) @ F.normalize(wide(key), dim=2).mT / temperature
        return -logits.log_softmax(2).diagonal(dim1=1, dim2=2).mean(1)
