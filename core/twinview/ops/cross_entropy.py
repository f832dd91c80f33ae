"""Cross-entropies between what two branches say, in fp32 whatever the autocast."""
from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.means import weighted_mean, wide
from twinview.ops.ranks import summed, world


def soft_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """D(p, z) = -sum_k softmax(sg z)_k log softmax(p)_k over channels, [B, K, ...] and [B, K, ...] -> [B, ...] (SimSiam, section 4.5).

    Nats; no gradient goes to `target`.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        return -(wide(target.detach()).softmax(1) * wide(prediction).log_softmax(1)).sum(1)


def soft_cross_entropy_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of `soft_cross_entropy` over vectors [B, K], or over cells [B, K, h, w] by `weight` [B, h, w]: a scalar, at least 0."""
    return weighted_mean(soft_cross_entropy(prediction, target), weight)


def class_weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_{y_i} l_i / sum_i w_{y_i} over the cells of all ranks, of logits [B, K, ...], labels [B, ...] int64 (-1: none), weights [K]; a scalar.

    A rank gives its own sum over the ranks' mean denominator: the mean over ranks, as of gradients in training, is the whole.
    """
    with torch.autocast(logits.device.type, enabled=False):
        z, counts = wide(logits), labels >= 0
        each = weights.to(z.dtype)[labels.clamp(min=0)] * counts
        total = summed(each.sum().detach().clone()) / world()
        losses = F.cross_entropy(z, labels.clamp(min=0), reduction="none")
        found: Tensor = (each * losses).sum() / total.clamp(min=torch.finfo(z.dtype).tiny)
        return found


def balanced_weights(clusters: int, auxiliary: int) -> tuple[float, float]:
    """Weights of sum 1 by which ln K and ln K_aux, the cross-entropies of a uniform start, come out equal (PiCIE + H, DenseSiam)."""
    main, other = math.log(clusters), math.log(auxiliary)
    return other / (main + other), main / (main + other)
