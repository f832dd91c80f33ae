"""The small networks that Siamese methods put on features."""
from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

LastNorm = bool | Literal["gain"]


def mlp(
    channels: int, hidden: int, out: int, *, layers: int = 2, norm: bool = True, last_norm: LastNorm = False, last_bias: bool = True
) -> nn.Sequential:
    """Linear-BN-ReLU blocks and a last linear layer, on vectors [B, channels] -> [B, out].

    `layers`: linear layers in all; one is the last alone.  `norm`: a BatchNorm behind each but the last (MoCo v2 has none).  `last_norm`: one
    behind the last too, without affine parameters (SimSiam, MoCo v3), or "gain": with a gain and no offset (SimCLR).
    A layer that a BatchNorm follows has no bias of its own: the norm would take it away again.  Any other has one; `last_bias = False` leaves
    the last without (BYOL's and MoCo v3's releases).
    """
    return _stack([channels] + [hidden] * (layers - 1) + [out], norm, last_norm, last_bias, nn.Linear, nn.BatchNorm1d)


def conv_mlp(
    channels: int, hidden: int, out: int, *, layers: int = 2, norm: bool = True, last_norm: LastNorm = False, last_bias: bool = True
) -> nn.Sequential:
    """`mlp` as 1x1 convolutions on maps [B, channels, h, w] -> [B, out, h, w] (PixPro's `MLP2d`)."""

    def convolution(channels: int, out: int, *, bias: bool) -> nn.Module:
        return nn.Conv2d(channels, out, 1, bias=bias)

    return _stack([channels] + [hidden] * (layers - 1) + [out], norm, last_norm, last_bias, convolution, nn.BatchNorm2d)


def _stack(
    widths: list[int], norm: bool, last_norm: LastNorm, last_bias: bool, linear: Callable[..., nn.Module], batch_norm: Callable[..., Any]
) -> nn.Sequential:
    *inner, last = itertools.pairwise(widths)
    found: list[nn.Module] = []
    for i, o in inner:
        found.append(linear(i, o, bias=not norm))
        if norm:
            found.append(batch_norm(o))
        found.append(nn.ReLU(inplace=True))
    found.append(linear(*last, bias=last_bias and not last_norm))
    if last_norm:
        behind = batch_norm(last[1], affine=last_norm == "gain")
        if last_norm == "gain":
            behind.bias.requires_grad_(False)  # stays at its start, 0
        found.append(behind)
    return nn.Sequential(*found)


class LinearClassifier(nn.Module):
    """Features [B, C] -> logits [B, classes]: a linear layer started at N(0, `std`) and bias 0.

    `norm` in front of it: "batch" without affine parameters (MAE's linear probe), "layer" (its fine-tuning), or "none".
    """

    def __init__(self, channels: int, classes: int, norm: Literal["none", "batch", "layer"], std: float) -> None:
        super().__init__()
        norms: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "batch": lambda: nn.BatchNorm1d(channels, affine=False, eps=1e-6),
            "layer": lambda: nn.LayerNorm(channels, eps=1e-6),
        }
        self.norm = norms[norm]()
        self.layer = nn.Linear(channels, classes)
        nn.init.normal_(self.layer.weight, std=std)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        found: Tensor = self.layer(self.norm(x))
        return found
