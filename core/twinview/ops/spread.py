"""Is a branch collapsing?  Two numbers that say how far a batch of features still differs from image to image."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def feature_spread(x: Tensor) -> Tensor:
    """Mean standard deviation of L2-normalised features [B, C], times sqrt(C); a scalar.

    About 1 where directions are spread over the whole sphere, 0 where every image has the same feature (SimSiam, section 4.1).
    """
    directions = F.normalize(x.detach().float(), dim=1)
    spread: Tensor = directions.std(0, correction=0).mean() * x.shape[1] ** 0.5
    return spread


@torch.no_grad()
def effective_rank(x: Tensor) -> Tensor:
    """How many directions a batch of features [B, C] really uses; a scalar from 1 to min(B - 1, C).

    The exponential of the entropy of the centred features' singular values, normalised to sum 1 (Roy and Vetterli 2007).
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
