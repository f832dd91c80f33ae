"""The small networks that Siamese methods put on features."""
from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import nn


def mlp(channels: int, hidden: int, out: int, *, layers: int = 2, last_norm: bool = False) -> nn.Sequential:
    """Linear-BN-ReLU blocks and a last linear layer, on vectors [B, channels] -> [B, out].

    `layers` linear layers in all; `last_norm` puts a BatchNorm without affine parameters behind the last (SimSiam, MoCo v3).
    A layer that a BatchNorm follows has no bias of its own: the norm would take it away again.
    """
    return _stack([channels] + [hidden] * (layers - 1) + [out], last_norm, lambda i, o, bias: nn.Linear(i, o, bias=bias), nn.BatchNorm1d)


def conv_mlp(channels: int, hidden: int, out: int, *, layers: int = 2, last_norm: bool = False) -> nn.Sequential:
    """`mlp` as 1x1 convolutions on maps [B, channels, h, w] -> [B, out, h, w] (PixPro's `MLP2d`)."""
    return _stack([channels] + [hidden] * (layers - 1) + [out], last_norm, lambda i, o, bias: nn.Conv2d(i, o, 1, bias=bias), nn.BatchNorm2d)


def _stack(widths: list[int], last_norm: bool, linear: Callable[[int, int, bool], nn.Module], norm: Callable[..., nn.Module]) -> nn.Sequential:
    *inner, last = itertools.pairwise(widths)
    found: list[nn.Module] = []
    for i, o in inner:
        found += [linear(i, o, False), norm(o), nn.ReLU(inplace=True)]
    found.append(linear(*last, not last_norm))
    if last_norm:
        found.append(norm(last[1], affine=False))
    return nn.Sequential(*found)
