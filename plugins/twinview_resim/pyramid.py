"""The feature pyramid that is pre-trained with the network (Lin et al. 2017)."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Pyramid(nn.Module):
    """Levels from coarse to fine -> a map for each but the coarsest: 1x1 convolutions added up top-down (nearest), then 3x3 convolutions.

    As released for ReSim: no norm, and no map of the coarsest level itself.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        """`widths`: channels of the levels, coarse to fine."""
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths[1:])
        for layer in (*self.lateral, *self.output):
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, widths[i], h_i, w_i], coarse to fine -> [B, channels, h_i, w_i] of all but the first."""
        top, *finer = (lateral(level) for lateral, level in zip(self.lateral, levels, strict=True))
        found = []
        for level, output in zip(finer, self.output, strict=True):
            top = level + F.interpolate(top, level.shape[2:], mode="nearest")
            found.append(output(top))
        return found
