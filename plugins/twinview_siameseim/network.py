"""The transformer of projector and predictor: pre-norm blocks whose norm is BatchNorm over all tokens of the batch."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.ops.sines import sine_table
from twinview.ops.transformer import Block, TokenNorm, initialize, to_map
from twinview.values import Size
from twinview_siameseim.positions import Relation, relative_sines

Norm = Literal["batch", "layer"]
NORMS: dict[Norm, Callable[[int], nn.Module]] = {"batch": TokenNorm, "layer": partial(nn.LayerNorm, eps=1e-6)}  # 1e-6 as released


class Projector(nn.Module):
    """Linear D_e -> D, then blocks over the tokens of an image; a map's cells are its tokens."""

    def __init__(self, channels: int, width: int, depth: int, heads: int, mlp_ratio: float, norm: Norm) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio, NORMS[norm]) for _ in range(depth)))
        initialize(self)

    def recomputable(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return [*self.blocks]

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, T, D_e] -> [B, T, D], or a map [B, D_e, h, w] -> [B, D, h, w]."""
        if x.ndim == 4:
            return to_map(self(x.flatten(2).mT), (x.shape[2], x.shape[3]))
        y: Tensor = self.blocks(self.embed(x))
        return y


class Decoder(nn.Module):
    """The predictor: asked for cells of another view by where they lie, it answers from the tokens of this one.

    `channels` wide outside and `width` wide inside; they differ where positions or heads do not divide `channels`.
    """

    def __init__(self, channels: int, width: int, depth: int, heads: int, mlp_ratio: float, norm: Norm) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, width) if width != channels else nn.Identity()
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.place = nn.Linear(2 * width, width)  # W_p
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio, NORMS[norm]) for _ in range(depth)))
        self.out = nn.Linear(width, channels)
        initialize(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def recomputable(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return [*self.blocks]

    def forward(self, tokens: Tensor, prefix: int, kept: Tensor | None, grid: Size, relation: Relation) -> Tensor:
        """Tokens [B, prefix + V, C] of the cells `kept` [B, V] (None: all) of a view's `grid`; gives [B, C, h', w'], the cells of `relation`."""
        x = self.embed(tokens)
        own = sine_table(grid, x.shape[2], row_first=True, device=x.device)
        own = own[kept] if kept is not None else own.expand(len(x), -1, -1)
        asked = self.mask_token + self.places(relation)
        x = self.blocks(torch.cat([x[:, :prefix], x[:, prefix:] + own, asked], 1))
        answers = self.out(x[:, -asked.shape[1] :])
        return to_map(answers, (relation.rows.shape[1], relation.columns.shape[1]))

    def places(self, relation: Relation) -> Tensor:
        """E = W_p e + b_p, [B, h'*w', width].

        W_p takes the four blocks of e one by one, each on the axis along which it varies: the same sum, at a small part of the products, and so
        in float32 whatever the autocast.
        """
        blocks = zip(relative_sines(relation, self.mask_token.shape[2]), self.place.weight.chunk(4, 1))
        with torch.autocast(self.mask_token.device.type, enabled=False):
            rho, gamma, zh, zw = (F.linear(e, w) for e, w in blocks)
            places: Tensor = rho + gamma + (zh + zw + self.place.bias)
        return places.flatten(1, 2)
