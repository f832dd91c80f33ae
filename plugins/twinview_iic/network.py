"""The network of the published segmentation, and its input of colors and edges."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from attrs import field
from attrs.validators import deep_iterable, gt, min_len
from torch import Tensor, nn

from twinview.hooks import hookimpl, part
from twinview.ops.maps import hide_cells, hide_pixels
from twinview.ops.sobel import luma, sobel
from twinview.values import EncoderSpec, Features, Level, Traits

Input = Literal["colors_and_edges", "edges", "colors"]
WIDTHS: Any = deep_iterable(gt(0), min_len(1))


@part
class SegmentationNet:
    """A VGG of 3x3 convolutions with BatchNorm and ReLU, one max-pool and two dilated layers at the end (IIC's SegmentationNet10a); stride 2.

    Its input are the image's channels, the edges of its grey (Sobel's dx and dy), or both.  Cells that are hidden are zeroed, at the input too.
    """

    input: Input = "colors_and_edges"
    stem: list[int] = field(factory=lambda: [64, 128], validator=WIDTHS)  # widths of the layers before the max-pool
    body: list[int] = field(factory=lambda: [256, 256], validator=WIDTHS)  # behind it
    dilated: list[int] = field(factory=lambda: [512, 512], validator=WIDTHS)  # of the layers of dilation 2

    @hookimpl
    def traits(self) -> Traits:
        """Gives cells and pooled, of images of any number of channels; can hide cells."""
        return Traits(gives=frozenset({"cells", "pooled", "hides", "any_channels"}))

    @hookimpl
    def make_encoder(self, channels: int) -> nn.Module:
        """The network."""
        return Network(channels, self.input, self.stem, self.body, self.dilated)


class Network(nn.Module):
    """Images [B, C, H, W] -> cells [B, dilated[-1], ceil(H / 2), ceil(W / 2)] and their mean."""

    def __init__(self, channels: int, given: Input, stem: Sequence[int], body: Sequence[int], dilated: Sequence[int], padding: int = 2) -> None:
        """`padding` of the dilated layers: 2 keeps the grid; the release has 1, by which each takes a cell off every side."""
        super().__init__()
        self.given = given
        layers: list[nn.Module] = []
        width = {"colors_and_edges": channels + 2, "edges": 2, "colors": channels}[given]
        for widths, dilation in ((stem, 1), (body, 1), (dilated, 2)):
            for out in widths:
                pad = padding if dilation == 2 else 1
                layers += [nn.Conv2d(width, out, 3, padding=pad, dilation=dilation, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                width = out
            if widths is stem:
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        self.spec = EncoderSpec(pooled=width, cells=Level(width, 2))

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        """`hidden` [B, h * w]: those cells' pixels are zero at the input, and their features in `cells`."""
        if hidden is not None:
            images = hide_pixels(images, hidden, self.spec.cells.stride)
        cells: Tensor = self.layers(self.seen(images))
        if hidden is not None:
            cells = hide_cells(cells, hidden)
        return Features(cells=cells, pooled=cells.mean((2, 3)))

    def seen(self, images: Tensor) -> Tensor:
        """Images -> what the first layer is given: the channels, then dx and dy."""
        if self.given == "colors":
            return images
        edges = sobel(luma(images))
        return edges if self.given == "edges" else torch.cat([images, edges], 1)
