"""Gaussian blur of a batch, each image with its own width."""
from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from twinview.values import Size

CUT = 3.5  # standard deviations; what lies beyond weighs 5e-4, an eighth of a grey level at most


def gaussian_kernels(sigma: Tensor, size: Size) -> Tensor:
    """[B, taps] of sum 1, odd in number and wide enough for the widest, for images of `size`; `sigma` [B] in pixels on the CPU, 0 = as it is.

    Each tail is cut at its own place, so that the rest of the batch changes nothing.
    """
    width = np.maximum(sigma.numpy(), 1e-3)[:, None]
    reach = min(math.ceil(CUT * width.max()), min(size) - 1)
    offset = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offset / width) ** 2) * (np.abs(offset) <= np.ceil(CUT * width))
    return torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32))


def own_kernels(sigma: NDArray[np.float32], size: Size) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The kernels of `gaussian_kernels`, each as if it were alone, one behind another, and where they begin [B + 1]; one tap where sigma is 0."""
    blurred = np.flatnonzero(sigma > 0)
    width = np.maximum(sigma[blurred], 1e-3)[:, None]
    reach = np.minimum(np.ceil(CUT * width[:, 0]), min(size) - 1).astype(np.int64)
    most = int(reach.max(initial=0))
    weights = np.exp(-0.5 * (np.arange(-most, most + 1) / width) ** 2)
    taps, counts = [np.ones(1)] * len(sigma), np.ones(len(sigma), np.int64)
    counts[blurred] = 2 * reach + 1
    for b, row, n in zip(blurred.tolist(), weights, reach.tolist()):
        own = row[most - n : most + n + 1]
        taps[b] = own / own.sum()
    return np.concatenate(taps).astype(np.float32), np.concatenate([[0], np.cumsum(counts)])


def gaussian_blur(x: Tensor, kernels: Tensor, whole: bool = True) -> Tensor:
    """Float images [B, C, h, w] under separable kernels [B, taps], mirrored at the borders; rounded to `whole` numbers.

    Shifted sums instead of a convolution: on one CPU thread they take a third of the time, and neither TF32 nor autocast reaches them,
    so that an image comes out the same alone in a worker and in a batch on an accelerator.
    """
    height, width = x.shape[-2:]
    reach = kernels.shape[1] // 2
    weights = kernels.T[..., None, None, None]  # [taps, B, 1, 1, 1]
    padded = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    sums = _shifted_sum(_shifted_sum(padded, weights, 2, height), weights, 3, width)
    return sums.round_() if whole else sums


def _shifted_sum(padded: Tensor, weights: Tensor, dim: int, length: int) -> Tensor:
    out = padded.narrow(dim, 0, length) * weights[0]
    for start in range(1, len(weights)):
        out.addcmul_(padded.narrow(dim, start, length), weights[start])
    return out
