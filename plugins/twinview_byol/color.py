"""Color operations on batches of images [B, C, h, w]: float32 on the scale 0..255.  They may overwrite the images that they are given.

Images of 8 bits hold whole numbers, and `whole` gives such again: each then does what torchvision's functional operation of that name does to uint8
images, its cutting off of fractions included, but with a factor [B, 1, 1, 1] for each image.  Images of more bits keep their fractions.
"""
from __future__ import annotations

import torch
from torch import Tensor

TOP = 255.0
TINY = 1e-6  # a chroma of nothing, in place of 0


def luma(x: Tensor, whole: bool = True) -> Tensor:
    """Grey value (ITU-R 601) of three channels, [B, 1, h, w]."""
    red, green, blue = x.chunk(3, dim=1)
    grey = (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return grey.floor_() if whole else grey


def brightness(x: Tensor, factor: Tensor, whole: bool = True) -> Tensor:
    """Towards black (0), away from it (above 1)."""
    return _within(x.mul_(factor), whole)


def contrast(x: Tensor, factor: Tensor, whole: bool = True) -> Tensor:
    """Towards the image's mean grey value (0), away from it (above 1); unless there are three channels, each toward its own mean."""
    mean = luma(x, whole).mean((1, 2, 3), keepdim=True) if x.shape[1] == 3 else x.mean((2, 3), keepdim=True)
    return _blend(x, mean, factor, whole)


def saturation(x: Tensor, factor: Tensor, whole: bool = True) -> Tensor:
    """Three channels toward each pixel's own grey value (0), away from it (above 1)."""
    return _blend(x, luma(x, whole), factor, whole)


def _blend(x: Tensor, other: Tensor, factor: Tensor, whole: bool) -> Tensor:
    return _within(x.mul_(factor).add_(other.mul(1 - factor)), whole)


def _within(x: Tensor, whole: bool) -> Tensor:
    x.clamp_(0, TOP)
    return x.floor_() if whole else x


def hue(x: Tensor, turn: Tensor, whole: bool = True) -> Tensor:
    """Turn, in three channels, the hue of the hexagonal color model (HSV) by a share of the full circle; value and saturation stay.

    With V and C the largest of a pixel's three values and its distance from the smallest, and H the hue in sixths of a turn from red:
        |H| = 2 + (green + blue - red - V) / C    and H is positive where green >= blue,
        channel = V - C * clamp(|distance from its own hue| - 1, 0, 1),    own hues: red 0, green 2, blue 4.
    Neither formula branches, so each is a few passes over memory; distances wrap round by |d| -> 3 - ||d| - 3|, which holds up to |d| = 6.
    """
    red, green, blue = x.chunk(3, dim=1)
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    angle = (green + blue).sub_(red).sub_(value).div_(chroma.clamp(min=1 if whole else TINY)).add_(2)
    angle.copysign_(green - blue)  # -3..3
    own = torch.arange(0, 6, 2, device=x.device).view(1, 3, 1, 1)
    shift = (6 * turn - own + 3).remainder(6).sub_(3)  # -3..3 too, so that the sum stays within 6
    unlike = torch.add(angle, shift, out=x).abs_().sub_(3).abs_().clamp_(1, 2)  # 2 - clamp(|distance| - 1, 0, 1)
    if whole:
        nearly = (TOP + 1 - 1e-3) / TOP  # by which torchvision goes from float back to uint8
        chroma.mul_(nearly)
        value.mul_(nearly)
    turned = torch.addcmul(value.sub_(chroma, alpha=2), chroma, unlike, out=x)
    return turned.floor_() if whole else turned
