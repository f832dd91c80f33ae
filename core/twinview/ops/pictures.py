"""Images of any number of channels and bits, made to be looked at."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image


def three_channels(images: Tensor) -> Tensor:
    """[..., C, H, W] -> [..., 3, H, W]: grey as three equal channels, two as red and green, of more the first three."""
    channels = images.shape[-3]
    if channels == 1:
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:])
    return torch.cat([images, torch.zeros_like(images[..., :1, :, :])], -3) if channels == 2 else images[..., :3, :, :]


def photograph(image: Tensor) -> Tensor:
    """[C, H, W] -> [3, H, W] uint8: uint8 as it is; of other types each channel stretched between its darkest and its lightest half percent."""
    shown = three_channels(image)
    if shown.dtype == torch.uint8:
        return shown
    wide = shown.float()
    low, high = (wide.flatten(1).kthvalue(k, 1).values[:, None, None] for k in _ends(wide[0].numel()))
    return ((wide - low) / (high - low).clamp(min=1e-6) * 255).round().clamp(0, 255).byte()


def to_picture(image: Tensor) -> Image.Image:
    """[3, H, W] uint8 -> a picture to draw on."""
    from PIL import Image

    return Image.fromarray(image.cpu().permute(1, 2, 0).contiguous().numpy())


def from_picture(picture: Image.Image) -> Tensor:
    """The inverse of `to_picture`."""
    import numpy as np

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _ends(n: int) -> tuple[int, int]:
    """Places, counted from 1, of the ends of what is shown of n sorted values."""
    cut = n // 200
    return 1 + cut, n - cut
