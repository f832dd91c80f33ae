"""UperNet's head (Xiao et al. 2018), and the maps of a plain vision transformer at four sizes in front of it (BEiT, MAE)."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview_finetune.fcn import conv

POOLS = (1, 2, 3, 6)


class Rescale(nn.Module):
    """Four maps of one size -> times 4, 2, 1 and 1/2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        up = [nn.ConvTranspose2d(channels, channels, 2, 2), nn.BatchNorm2d(channels), nn.GELU(), nn.ConvTranspose2d(channels, channels, 2, 2)]
        others = [nn.ConvTranspose2d(channels, channels, 2, 2), nn.Identity(), nn.MaxPool2d(2, ceil_mode=True)]
        self.resize = nn.ModuleList([nn.Sequential(*up), *others])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[B, C, h, w] each."""
        return [resize(x) for resize, x in zip(self.resize, maps, strict=True)]


class UperNetHead(nn.Module):
    """Four maps from fine to coarse -> logits [B, classes, h, w] of the finest's size."""

    def __init__(self, channels: Sequence[int], classes: int, width: int, rescale: bool, dropout: float, levels: Sequence[str]) -> None:
        """`rescale`: the maps are of one size and are brought to four; `levels`: of the encoder, whose maps it takes."""
        super().__init__()
        self.levels = tuple(levels)
        self.rescale = Rescale(channels[0]) if rescale else None
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(n), conv(channels[-1], width, 1)) for n in POOLS)
        self.bottleneck = conv(channels[-1] + len(POOLS) * width, width)
        self.lateral = nn.ModuleList(conv(c, width, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(conv(width, width) for _ in channels[:-1])
        self.fuse = conv(len(channels) * width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pyramid pooling on the coarsest, top-down sums, all joined at the finest."""
        if self.rescale is not None:
            maps = self.rescale(maps)
        top = maps[-1]
        pooled = [F.interpolate(pool(top), top.shape[2:], mode="bilinear", align_corners=False) for pool in self.pools]
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps)] + [self.bottleneck(torch.cat([top, *pooled], 1))]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], levels[i - 1].shape[2:], mode="bilinear", align_corners=False)
        levels = [smooth(x) for smooth, x in zip(self.smooth, levels)] + levels[-1:]
        size = levels[0].shape[2:]
        joined = torch.cat([levels[0], *(F.interpolate(x, size, mode="bilinear", align_corners=False) for x in levels[1:])], 1)
        found: Tensor = self.classify(self.dropout(self.fuse(joined)))
        return found
