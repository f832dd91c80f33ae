"""The small networks that Siamese methods put on features."""
from __future__ import annotations

from torch import nn


def mlp(channels: int, hidden: int, out: int, *, layers: int = 2, last_norm: bool = False) -> nn.Sequential:
    """Linear-BN-ReLU blocks and a last linear layer, on vectors [B, channels] -> [B, out].

    `layers` linear layers in all; `last_norm` puts a BatchNorm without affine parameters behind the last (SimSiam, MoCo v3).
    A layer that a BatchNorm follows has no bias of its own: the norm would take it away again.
    """
    return _stack(channels, hidden, out, layers, last_norm, lambda i, o, bias: nn.Linear(i, o, bias=bias), nn.BatchNorm1d)


def conv_mlp(channels: int, hidden: int, out: int, *, layers: int = 2, last_norm: bool = False) -> nn.Sequential:
    """`mlp` as 1x1 convolutions on maps [B, channels, h, w] -> [B, out, h, w] (PixPro's `MLP2d`)."""
    return _stack(channels, hidden, out, layers, last_norm, lambda i, o, bias: nn.Conv2d(i, o, 1, bias=bias), nn.BatchNorm2d)


def _stack(channels, hidden, out, layers, last_norm, linear, norm) -> nn.Sequential:  # type: ignore[no-untyped-def]
    widths = [channels] + [hidden] * (layers - 1) + [out]
    found: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        last = i == layers - 1
        found.append(linear(a, b, last and not last_norm))
        if not last:
            found += [norm(b), nn.ReLU(inplace=True)]
        elif last_norm:
            found.append(norm(b, affine=False))
    return nn.Sequential(*found)
