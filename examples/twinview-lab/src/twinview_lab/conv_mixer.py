"""ConvMixer (Trockman and Kolter 2022, arXiv 2201.09792): patches, depthwise convolutions, and nothing else."""
from __future__ import annotations

from attrs import field
from attrs.validators import ge, gt
from torch import Tensor, nn
from torch.nn import functional as F

from twinview import hookimpl, part
from twinview.values import EncoderSpec, Features, Level, Traits


class Block(nn.Module):
    """x + norm(gelu(depthwise(x))), then norm(gelu(pointwise(x)))."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise, self.pointwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width), nn.Conv2d(width, width, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same shape."""
        x = x + self.norm1(F.gelu(self.depthwise(x)))
        y: Tensor = self.norm2(F.gelu(self.pointwise(x)))
        return y


class Network(nn.Module):
    """Images [B, C, H, W] -> `Features`.  Sides that are no multiple of the patch are filled up with zeros, below and on the right."""

    def __init__(self, width: int, depth: int, kernel: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed, self.norm = nn.Conv2d(channels, width, patch, patch), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(Block(width, kernel) for _ in range(depth)))
        self.spec = EncoderSpec(pooled=width, cells=Level(width, patch))

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        """`hidden` [B, h * w]: the pixels of these cells count as the mean color, and their features are 0."""
        height, width = images.shape[-2:]
        x = self.embed(F.pad(images, (0, -width % self.patch, 0, -height % self.patch)))
        seen = None if hidden is None else ~hidden.view(-1, 1, *x.shape[-2:])
        x = self.norm(F.gelu(x if seen is None else x * seen))
        x = self.blocks(x)
        x = x if seen is None else x * seen
        return Features(cells=x, pooled=x.mean((2, 3)))

    def recomputable(self) -> list[nn.Module]:
        """The blocks."""
        return [*self.blocks]


@part
class ConvMixer:
    """ConvMixer-width/depth with its kernel and patch, without classifier."""

    width: int = field(default=256, validator=gt(0))  # channels
    depth: int = field(default=8, validator=ge(1))  # blocks
    kernel: int = field(default=5, validator=ge(1))  # of the depthwise convolutions, cells; odd
    patch: int = field(default=8, validator=gt(0))  # pixels of a patch's side

    @hookimpl
    def traits(self) -> Traits:
        """Cells and their mean; hides cells, takes images of any number of channels, names its blocks."""
        return Traits(gives=frozenset({"cells", "pooled", "hides", "hides_any", "any_channels", "recomputable"}))

    @hookimpl
    def make_encoder(self, channels: int) -> nn.Module:
        """The network for images of so many channels."""
        return Network(self.width, self.depth, self.kernel, self.patch, channels)
