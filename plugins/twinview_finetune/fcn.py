"""FCN's head (Long et al. 2015) in its two usual shapes."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import attrs
import torch
from torch import Tensor, nn


@attrs.frozen(kw_only=True)
class Shape:
    """What tells the two protocols' heads apart."""

    width: int
    dilation: int
    skip: bool  # the input is joined to what the convolutions give, and a third one follows
    dropout: float
    auxiliary: float  # weight of a second head on the level before; 0: none


PROTOCOLS = {
    "A": Shape(width=256, dilation=6, skip=False, dropout=0.0, auxiliary=0.0),  # MoCo's; MultiSiam's Cityscapes and BDD100K
    "B": Shape(width=512, dilation=1, skip=True, dropout=0.1, auxiliary=0.4),  # mmsegmentation's, DenseCL's; DenseSiam's Cityscapes
}


def conv(channels: int, width: int, side: int = 3, dilation: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU; the size stays."""
    reach = dilation * (side // 2)
    layers = nn.Conv2d(channels, width, side, padding=reach, dilation=dilation, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    return nn.Sequential(*layers)


class FCNHead(nn.Module):
    """A map [B, C, h, w] -> logits [B, classes, h, w]."""

    def __init__(self, channels: int, classes: int, shape: Shape, convs: int, levels: Sequence[str]) -> None:
        """`convs`: 3x3 convolutions in front; `levels`: of the encoder, whose one map it takes."""
        super().__init__()
        self.levels = tuple(levels)
        widths = [channels, *[shape.width] * convs]
        self.convs = nn.Sequential(*(conv(a, b, dilation=shape.dilation) for a, b in pairwise(widths)))
        self.join = conv(channels + shape.width, shape.width) if shape.skip else None
        self.dropout = nn.Dropout2d(shape.dropout)
        self.classify = nn.Conv2d(shape.width, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The logits of the one map."""
        (x,) = maps
        y = self.convs(x)
        if self.join is not None:
            y = self.join(torch.cat([x, y], 1))
        found: Tensor = self.classify(self.dropout(y))
        return found
