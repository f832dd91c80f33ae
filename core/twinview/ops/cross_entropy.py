"""Cross-entropies between what two branches say, in fp32 whatever the autocast."""
from __future__ import annotations

import torch
from torch import Tensor

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
