"""Means over what counts, at a precision that sums can be trusted with."""
from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or float64 where it is that already: what losses reckon in, whatever the autocast."""
    return x if x.dtype == torch.float64 else x.float()


def weighted_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of `values` [...] by `weight` of the same shape: a scalar; 0, without gradient, where all weights are 0."""
    if weight is None:
        return values.mean()
    weight = weight.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=torch.finfo(values.dtype).tiny)
