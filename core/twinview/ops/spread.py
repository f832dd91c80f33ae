"""Is a branch collapsing?  Two numbers that say how far a batch of features still differs from image to image."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ENOUGH = 8  # images: of fewer, an effective rank says more of their number than of the features


@torch.no_grad()
def feature_spread(x: Tensor) -> Tensor:
    """Mean standard deviation of L2-normalized features [B, C], times sqrt(C); a scalar.

    About 1 where directions are spread over the whole sphere, 0 where every image has the same feature (SimSiam, section 4.1).
    """
    return spread_of(direction_sums(x)).float()


@torch.no_grad()
def direction_sums(x: Tensor) -> Tensor:
    """Features [B, C] -> [1 + 2 C] float64: their number, and sums of their directions and of the squares; sums of parts are those of the whole."""
    directions = F.normalize(x.detach().float(), dim=1).double()
    return torch.cat([directions.new_tensor([len(x)]), directions.sum(0), directions.square().sum(0)])


@torch.no_grad()
def spread_of(sums: Tensor) -> Tensor:
    """`feature_spread` of the features whose `direction_sums` these are, [1 + 2 C]; a scalar."""
    first, second = sums[1:].view(2, -1) / sums[0]
    spread: Tensor = (second - first.square()).clamp(min=0).sqrt().mean() * len(first) ** 0.5
    return spread


@torch.no_grad()
def effective_rank(x: Tensor) -> Tensor:
    """How many directions a batch of features [B, C] really uses; a scalar from 1 to min(B - 1, C).

    The exponential of the entropy of the centered features' singular values, normalized to sum 1 (Roy and Vetterli 2007).
    1 where all features are equal, NaN where one is not finite.
    """
    x = x.detach().float()
    if not x.isfinite().all():  # the decomposition would raise, and what to say of such a step is not decided here
        return x.new_tensor(float("nan"))
    values = torch.linalg.svdvals(x - x.mean(0))
    values = torch.where(values > x.norm() * torch.finfo(x.dtype).eps, values, 0)  # the rounding of equal features is no direction
    share = values / values.sum().clamp(min=torch.finfo(x.dtype).tiny)
    rank: Tensor = torch.special.entr(share).sum().exp()
    return rank
