"""What lies between an encoder and the detector: a feature pyramid, or ViTDet's simple one from a single map."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w]."""
        found: Tensor = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return found


class FPN(nn.Module):
    """Maps c2 to c5 -> levels "0" to "3" and a coarser one, "pool" (Lin et al. 2017)."""

    names = ("0", "1", "2", "3")

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(channels), width, extra_blocks=LastLevelMaxPool())

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        """Five maps of `width` channels."""
        found: OrderedDict[str, Tensor] = self.pyramid(OrderedDict(zip(self.names, maps, strict=True)))
        return found


class SimplePyramid(nn.Module):
    """One map -> levels at 4, 2, 1 and 1/2 times its size and a coarser one (Li et al. 2022, ViTDet)."""

    names = FPN.names

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        norm = LayerNorm2d
        half, quarter = max(1, channels // 2), max(1, channels // 4)
        four = [nn.ConvTranspose2d(channels, half, 2, 2), LayerNorm2d(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, 2)]
        sizes = [(nn.Sequential(*four), quarter), (nn.ConvTranspose2d(channels, half, 2, 2), half), (nn.Identity(), channels)]
        sizes.append((nn.MaxPool2d(2, 2, ceil_mode=True), channels))
        self.resize = nn.ModuleList(module for module, _ in sizes)
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), norm(width), nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width))
            for _, c in sizes
        )

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        """Five maps of `width` channels."""
        (x,) = maps
        found = OrderedDict((name, lateral(resize(x))) for name, resize, lateral in zip(self.names, self.resize, self.lateral))
        found["pool"] = F.max_pool2d(found["3"], 1, 2)
        return found


class Single(nn.Module):
    """One map as it is (C4)."""

    names = ("0",)

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        """The map, by name."""
        return OrderedDict(zip(self.names, maps, strict=True))
