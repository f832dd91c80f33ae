"""Transformer blocks (Vaswani et al. 2017; pre-norm) for projectors and decoders over tokens, and tokens as maps."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.values import Size


class TokenNorm(nn.Module):
    """BatchNorm over batch x tokens of [B, T, C], in float32 whatever the autocast."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> the same shape, float32."""
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = self.bn(x.float().flatten(0, 1))
            return y.view(x.shape)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class MLP(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); parameters are called as in timm's blocks."""

    def __init__(self, channels: int, heads: int, mlp_ratio: float, norm: Callable[[int], nn.Module]) -> None:
        """`norm`: makes a norm for so many channels."""
        super().__init__()
        self.norm1 = norm(channels)
        self.attn = Attention(channels, heads)
        self.norm2 = norm(channels)
        self.mlp = MLP(channels, round(mlp_ratio * channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


def initialize(module: nn.Module) -> None:
    """Linear layers: Xavier uniform (query, key and value as one matrix), biases 0 (MAE, SiameseIM)."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            nn.init.zeros_(m.bias)


def to_map(tokens: Tensor, grid: Size, prefix: int = 0, kept: Tensor | None = None) -> Tensor:
    """Tokens [B, prefix + V, C] of the cells `kept` [B, V] (None: all) -> a map [B, C, h, w], 0 where no token stands for a cell."""
    cells = tokens[:, prefix:]
    if kept is not None:
        blank = cells.new_zeros(len(cells), grid[0] * grid[1], cells.shape[2])
        cells = blank.scatter(1, kept[..., None].expand_as(cells), cells)
    return cells.mT.reshape(*cells.mT.shape[:2], *grid)
