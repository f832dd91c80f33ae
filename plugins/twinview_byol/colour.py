"""Colour operations on batches of images [B, 3, h, w]: float32 that hold the whole numbers 0..255, and give such again.

Each does what torchvision's functional operation of that name does to uint8 images, its cutting off of fractions included, but with a factor
[B, 1, 1, 1] for each image.  They may overwrite the images that they are given.
"""
from __future__ import annotations

import torch
from torch import Tensor

TOP = 255.0


def luma(x: Tensor) -> Tensor:
    """Grey value (ITU-R 601) [B, 1, h, w]."""
    red, green, blue = x.chunk(3, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Towards black (0), away from it (above 1)."""
    return x.mul_(factor).clamp_(max=TOP).floor_()


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Towards the image's mean grey value (0), away from it (above 1)."""
    return _blend(x, luma(x).mean((1, 2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Towards each pixel's own grey value (0), away from it (above 1)."""
    return _blend(x, luma(x), factor)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor).add_(other.mul(1 - factor)).clamp_(0, TOP).floor_()


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of the hexagonal colour model (HSV) by a share of the full circle; value and saturation stay.

    With V and C the largest of a pixel's three values and its distance from the smallest, and H the hue in sixths of a turn from red:
        |H| = 2 + (green + blue - red - V) / C    and H is positive where green >= blue,
        channel = V - C * clamp(|distance from its own hue| - 1, 0, 1),    own hues: red 0, green 2, blue 4.
    Neither formula branches, so each is a few passes over memory; distances wrap round by |d| -> 3 - ||d| - 3|, which holds up to |d| = 6.
    """
    red, green, blue = x.chunk(3, dim=1)
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    angle = (green + blue).sub_(red).sub_(value).div_(chroma.clamp(min=1)).add_(2)
    angle.copysign_(green - blue)  # -3..3
    own = torch.arange(0, 6, 2, device=x.device).view(1, 3, 1, 1)
    shift = (6 * turn - own + 3).remainder(6).sub_(3)  # -3..3 too, so that the sum stays within 6
    unlike = torch.add(angle, shift, out=x).abs_().sub_(3).abs_().clamp_(1, 2)  # 2 - clamp(|distance| - 1, 0, 1)
    nearly = (TOP + 1 - 1e-3) / TOP  # by which torchvision goes from float back to uint8
    chroma.mul_(nearly)
    return torch.addcmul(value.mul_(nearly).sub_(chroma, alpha=2), chroma, unlike, out=x).floor_()
