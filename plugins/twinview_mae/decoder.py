"""The decoder: narrow transformer blocks over the tokens that the encoder saw and a mask token in every hidden place."""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from twinview.ops.sines import sine_table
from twinview.ops.transformer import Block, initialize
from twinview.values import Size

OFFICIAL: Mapping[str, str] = {  # start of a name in the official checkpoints -> start of ours
    "decoder_embed.": "embed.",
    "mask_token": "mask_token",
    "decoder_blocks.": "blocks.",
    "decoder_norm.": "norm.",
    "decoder_pred.": "out.",
}
layer_norm = partial(nn.LayerNorm, eps=1e-6)


class Decoder(nn.Module):
    """Linear D -> width, fixed sine positions (column first), `depth` blocks, LayerNorm, Linear width -> the pixels of a patch (section 3)."""

    def __init__(self, channels: int, width: int, depth: int, heads: int, mlp_ratio: float, out: int) -> None:
        """`channels` of the encoder's tokens; `out` numbers a patch."""
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio, layer_norm) for _ in range(depth)))
        self.norm = layer_norm(width)
        self.out = nn.Linear(width, out)
        initialize(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def recomputable(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return [*self.blocks]

    def forward(self, tokens: Tensor, prefix: int, kept: Tensor | None, hidden: Tensor, grid: Size) -> Tensor:
        """Tokens [B, prefix + V, D] of the cells `kept` [B, V] (None: of all N cells) -> what each cell shows, [B, N, out].

        `hidden` [B, N] bool: where the mask token stands; `grid` (h, w) with N = h w.  The tokens before the cells', such as the class token, take
        part and have position 0.
        """
        x = self.embed(tokens)
        before, cells = x[:, :prefix], x[:, prefix:]
        if kept is not None:
            places = kept[..., None].expand(-1, -1, x.shape[2])
            cells = self.mask_token.to(x.dtype).expand(len(x), hidden.shape[1], -1).scatter(1, places, cells)
        else:
            cells = torch.where(hidden[..., None], self.mask_token.to(x.dtype), cells)
        cells = cells + sine_table(grid, x.shape[2], row_first=False, device=x.device)
        x = self.norm(self.blocks(torch.cat([before, cells], 1)))
        pixels: Tensor = self.out(x[:, prefix:])
        return pixels
