"""Edges of a grey image (Sobel and Feldman 1968), as DeepCluster and IIC give them to a network."""
from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

KERNELS = (((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0)), ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0)))  # dx, dy


def sobel(grey: Tensor) -> Tensor:
    """[B, 1, H, W] -> [B, 2, H, W]: dx and dy, cross-correlations with 3x3 kernels; beyond the border there are zeros."""
    return F.conv2d(grey, grey.new_tensor(KERNELS)[:, None], padding=1)


def luma(images: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 1, H, W]: the grey of red, green and blue (ITU-R BT.601); of other numbers of channels their mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
