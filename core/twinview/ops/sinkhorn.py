"""Sinkhorn-Knopp: soft assignments that use all clusters alike (Cuturi 2013; SwAV, section 3.1; DINOv2's teacher)."""
from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from twinview.ops.means import wide
from twinview.ops.ranks import summed, world


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Scores [n, K] of this rank's samples -> assignments [n, K], each row a distribution, float32 (float64 of float64).

    exp(scores / temperature) is scaled in turn so that, over the samples of all ranks, each cluster holds as much, and each sample 1; rows come last.
    The largest score of all is taken off first, which changes nothing and keeps exp finite.  Ranks may have different numbers of samples; all
    call it.
    """
    with torch.autocast(scores.device.type, enabled=False):
        scores = wide(scores)
        q = ((scores - _largest(scores)) / temperature).exp()
        tiny = torch.finfo(q.dtype).tiny
        for _ in range(iterations):
            q = q / summed(q.sum(0)).clamp(min=tiny)
            q = q / q.sum(1, keepdim=True).clamp(min=tiny)
        return q


def _largest(scores: Tensor) -> Tensor:
    largest = scores.max() if scores.numel() else scores.new_full((), -torch.inf)
    if world() > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest
