"""Tiny: an encoder of three small layers that gives all that a loss can ask for, so that methods are tried within seconds."""
from __future__ import annotations

import torch
from attrs import field
from attrs.validators import ge
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.hooks import hookimpl, part
from twinview.values import EncoderSpec, Features, Level, Traits

STRIDE = 8  # pixels of a cell's side
LEVELS = {"c2": 4, "c3": 8, "c4": 8, "c5": 8}  # name -> stride


class Net(nn.Module):
    """Images [B, C, H, W] -> `Features`: two convolutions without overlap, and one layer that mixes the cells of an image.

    No dropout and no BatchNorm: what it gives for an image depends on that image alone.  Sides that are no multiple of 8 are filled up with zeros.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.fine, self.coarse, self.mix = nn.Conv2d(channels, width, 4, 4), nn.Conv2d(width, width, 2, 2), nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        levels = {name: Level(width, stride) for name, stride in LEVELS.items()}
        self.spec = EncoderSpec(pooled=width, cells=Level(width, STRIDE), levels=levels, prefix=1, patch=STRIDE)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        """`hidden` [B, h * w]: a learned token stands in the place of these cells, and nothing of their pixels is seen."""
        height, width = images.shape[-2:]
        fine = self.fine(F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE)))  # [B, C, 2h, 2w]
        if hidden is not None:
            mask = hidden.view(-1, 1, fine.shape[2] // 2, fine.shape[3] // 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
            fine = fine.where(~mask, self.mask_token.to(fine.dtype)[:, None, None])
        fine = F.gelu(fine)
        cells = self.coarse(fine)  # [B, C, h, w]
        mixed = self.mix(cells.mean((2, 3)))
        cells = cells + mixed[:, :, None, None]
        pooled = F.gelu(cells).mean((2, 3))
        levels = {name: fine[:, :, : -(-height // 4), : -(-width // 4)] if stride == 4 else cells for name, stride in LEVELS.items()}
        tokens = F.pad(cells.flatten(2).mT, (0, 0, 1, 0)) + F.pad(mixed[:, None], (0, 0, 0, cells[0, 0].numel()))
        return Features(cells, pooled, levels, tokens, 1)

    def recomputable(self) -> list[nn.Module]:
        """The layer that mixes."""
        return [self.mix]


@part
class Encoder:
    """Cells of 8 x 8 pixels, levels, tokens with a class token, hidden cells, images of any channels.  For tests: it learns nothing worth keeping."""

    width: int = field(default=16, validator=ge(1))  # channels of every map

    @hookimpl
    def traits(self) -> Traits:
        """Gives everything."""
        return Traits(gives=frozenset({"cells", "pooled", "levels", "tokens", "hides", "hides_any", "any_channels", "recomputable"}))

    @hookimpl
    def make_encoder(self, masked: bool, channels: int) -> nn.Module:
        """The network; its mask token is frozen where nothing is hidden."""
        made = Net(self.width, channels)
        made.mask_token.requires_grad_(masked)
        return made


@hookimpl
def parts() -> dict[str, type]:
    """`tiny.encoder`."""
    return {"encoder": Encoder}
