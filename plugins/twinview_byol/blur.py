"""Gaussian blur of a batch, each image with its own width."""
from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.values import Size

CUT = 4  # standard deviations; what lies beyond weighs less than 1e-4


def gaussian_kernels(sigma: Tensor, size: Size) -> Tensor:
    """[B, taps] of sum 1, odd in number and wide enough for the widest, for images of `size`; `sigma` [B] in pixels, 0 leaves an image as it is.

    Each tail is cut at its own place, so that the rest of the batch changes nothing.
    """
    reach = min(math.ceil(CUT * float(sigma.max())), min(size) - 1)
    offset = torch.arange(-reach, reach + 1)
    width = sigma.clamp(min=1e-3)[:, None]
    weights = torch.exp(-0.5 * (offset / width) ** 2) * (offset.abs() <= torch.ceil(CUT * width))
    return weights / weights.sum(1, keepdim=True)


def gaussian_blur(x: Tensor, kernels: Tensor) -> Tensor:
    """Float images [B, C, h, w] under separable kernels [B, taps], mirrored at the borders -> whole numbers.

    Shifted sums instead of a convolution: on one CPU thread they take a third of the time, and neither TF32 nor autocast reaches them,
    so that an image comes out the same alone in a worker and in a batch on an accelerator.
    """
    height, width = x.shape[-2:]
    reach = kernels.shape[1] // 2
    weights = kernels.T[..., None, None, None]  # [taps, B, 1, 1, 1]
    padded = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    return _shifted_sum(_shifted_sum(padded, weights, 2, height), weights, 3, width).round_()


def _shifted_sum(padded: Tensor, weights: Tensor, dim: int, length: int) -> Tensor:
    out = padded.narrow(dim, 0, length) * weights[0]
    for start in range(1, len(weights)):
        out.addcmul_(padded.narrow(dim, start, length), weights[start])
    return out
