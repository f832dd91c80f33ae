"""Principal components of the rows of all ranks, whitened (DeepCluster's pre-processing)."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.ranks import summed


@torch.no_grad()
def whitened(rows: Tensor, components: int) -> Tensor:
    """`rows` [n, C] of this rank -> [n, components]: centered, on the largest principal components, each of unit variance; then each row of length 1.

    Mean and covariance are those of all ranks, in float64.  The sign of a component is that by which the largest number of its direction is positive,
    so that it does not depend on the machine.
    """
    wide = rows.double()
    total = summed(torch.cat([wide.sum(0), wide.new_tensor([len(rows)])]))
    centered = wide - total[:-1] / total[-1]
    values, vectors = torch.linalg.eigh(summed(centered.mT @ centered))
    values, vectors = values.flip(0)[:components], vectors.flip(1)[:, :components]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    there = values > values[0] * 1e-10  # what is left is rounding: fewer rows than components
    scale = torch.where(there, values.clamp(min=torch.finfo(torch.float64).tiny).rsqrt(), 0)  # 1 / n vanishes where rows are normalized
    return F.normalize(centered @ vectors * scale, dim=1).to(rows.dtype)
