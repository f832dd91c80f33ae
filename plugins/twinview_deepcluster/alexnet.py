"""AlexNet's convolutions with BatchNorm, on the edges of an image."""
from __future__ import annotations

import math

from attrs import field
from attrs.validators import gt
from torch import Tensor, nn

from twinview.hooks import hookimpl, part
from twinview.ops.maps import hide_cells, hide_pixels
from twinview.ops.sobel import sobel
from twinview.values import EncoderSpec, Features, Level, Traits

LAYERS = ((96, 11, 4, True), (256, 5, 1, True), (384, 3, 1, False), (384, 3, 1, False), (256, 3, 1, True))  # width, kernel, stride, max-pool behind


@part
class AlexNet:
    """AlexNet's five convolutions with BatchNorm (96, 256, 384, 384, 256), which see Sobel's edges of the mean of the channels; stride 32.

    Paddings are half of each kernel, so that cells lie on a regular grid; published ones are smaller.
    """

    width: float = field(default=1.0, validator=gt(0))  # of the layers, as a multiple
    sobel: bool = True  # edges alone; or the image's channels

    @hookimpl
    def traits(self) -> Traits:
        """Gives cells and pooled, of images of any number of channels; can hide cells."""
        return Traits(gives=frozenset({"cells", "pooled", "hides", "any_channels"}))

    @hookimpl
    def make_encoder(self, channels: int) -> nn.Module:
        """The network."""
        return Network(2 if self.sobel else channels, self.width, self.sobel)


class Network(nn.Module):
    """Images [B, C, H, W] -> cells [B, 256, ceil(H / 32), ceil(W / 32)] and their mean."""

    def __init__(self, channels: int, width: float, edges: bool) -> None:
        super().__init__()
        self.edges, layers = edges, list[nn.Module]()
        for out, kernel, stride, pool in LAYERS:
            conv = nn.Conv2d(channels, round(width * out), kernel, stride, kernel // 2)
            nn.init.normal_(conv.weight, std=math.sqrt(2 / (kernel * kernel * conv.out_channels)))
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            channels = conv.out_channels
            layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *([nn.MaxPool2d(3, 2, 1)] if pool else [])]
        self.layers = nn.Sequential(*layers)
        self.spec = EncoderSpec(pooled=channels, cells=Level(channels, 32))

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        """`hidden` [B, h * w]: those cells' pixels are zero at the input, and their features in `cells`."""
        if hidden is not None:
            images = hide_pixels(images, hidden, self.spec.cells.stride)
        cells: Tensor = self.layers(sobel(images.mean(1, keepdim=True)) if self.edges else images)
        if hidden is not None:
            cells = hide_cells(cells, hidden)
        return Features(cells=cells, pooled=cells.mean((2, 3)))
