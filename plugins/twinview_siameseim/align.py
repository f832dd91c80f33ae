"""Alignment that is learned: a decoder gives the target view's cells from the online view's tokens."""
from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor

from twinview.branch import Branch
from twinview.errors import ContractError, PluginError
from twinview.hooks import hookimpl, part
from twinview.ops.maps import resize_map
from twinview.ops.transformer import to_map
from twinview.values import Alignment, Dims, Head, Size, Step, Traits
from twinview_siameseim.network import Decoder, Norm
from twinview_siameseim.positions import Relation, relate


@part
class Relative:
    """A decoder that predicts every cell of the target view from what the online branch saw, asked by relative position and scale.

    Mask tokens at the places of the target's cells in the online view's frame stand beside the online tokens at their own, in blocks of full
    self-attention.  Nothing is resampled: predictions lie on the target's own grid, and every cell counts, whether the views meet there or not.
    Each width that losses send has a decoder of its own.
    """

    depth: int = field(default=4, validator=ge(1))  # blocks
    attention_heads: int = field(default=16, validator=ge(1))  # of each block
    mlp_ratio: float = field(default=4.0, validator=gt(0))  # width of a block's hidden layer : width of the decoder
    width: int = field(default=0, validator=ge(0))  # of the decoder; 0: what a loss sends, rounded up until attention heads and positions divide it
    norm: Norm = "batch"  # batch: over batch x tokens; or layer

    def __attrs_post_init__(self) -> None:
        if self.width % self._multiple:
            raise ValueError(f"width wants a multiple of {self._multiple} for {self.attention_heads} attention heads, not {self.width}")

    @property
    def _multiple(self) -> int:
        """What widths must divide by: positions take sines and cosines of rows and columns."""
        return math.lcm(4, self.attention_heads)

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells, and as many hidden ones in every image."""
        return Traits(needs=frozenset({"cells", "pairs", "even_masks"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`decoder<C>`, online only, for each width C that losses send."""
        found = {}
        for sent in dims.sent:
            width = self.width or -(-sent // self._multiple) * self._multiple
            decoder = Decoder(sent, width, self.depth, self.attention_heads, self.mlp_ratio, self.norm)
            found[f"decoder{sent}"] = Head(decoder, "online_only")
        return found

    @hookimpl
    def align(self, step: Step, online: int, target: int) -> Alignment:
        """Takes tokens too, the class token among them.  Weight 1 everywhere."""
        here, there = step.online[online], step.target[target]
        grids = _grid(here.at("cells")), _grid(there.at("cells"))
        tokens = _Seen(here.prefix, here.kept)
        cells = _Seen(0, here.kept if here.kept is not None else _visible(step, online))
        relation = relate(step.geometry, online, target, grids)
        return Alignment(
            online=partial(self._predict, step.branches.online, tokens, cells, grids[0], relation),
            target=partial(_target, there.prefix, there.kept, grids[1]),
            weight=torch.ones_like(there.at("cells")[:, 0], dtype=torch.float32),
            fills_hidden=True,
            takes_tokens=True,
        )

    def _predict(self, branch: Branch, tokens: _Seen, cells: _Seen, grid: Size, relation: Relation, x: Tensor) -> Tensor:
        """Tokens [B, prefix + V, C], or a map [B, C, h, w] of which the visible cells are the tokens -> [B, C, h', w']."""
        seen = tokens
        if x.ndim == 4:
            seen, x = cells, resize_map(x, grid).flatten(2).mT
            if seen.kept is not None:
                x = x.gather(1, seen.kept[..., None].expand(-1, -1, x.shape[2]))
        try:
            decoder: Decoder = branch.of(self, f"decoder{x.shape[2]}")
        except ContractError:
            raise PluginError(f"[align] siameseim.relative: a loss sends {x.shape[2]} channels. Its aligned_widths() must name them.") from None
        predictions: Tensor = decoder(x, *seen, grid, relation)
        return predictions


class _Seen(NamedTuple):
    """Which cells a row of tokens stands for."""

    prefix: int  # tokens before those of cells
    kept: Tensor | None  # [B, V]; None: all


def _target(prefix: int, kept: Tensor | None, grid: Size, x: Tensor) -> Tensor:
    """Tokens or a map of the target view -> [B, C, h', w'], its own cells."""
    return to_map(x, grid, prefix, kept) if x.ndim == 3 else resize_map(x, grid)


def _grid(cells: Tensor) -> Size:
    return cells.shape[2], cells.shape[3]


def _visible(step: Step, view: int) -> Tensor | None:
    """[B, V]: the visible cells of a view whose encoder saw a blank in place of the hidden ones; None: all."""
    hidden = step.hidden[view]
    if hidden is None:
        return None
    visible = hidden.shape[1] - int(hidden[0].sum())  # as many in every image
    found: Tensor = hidden.byte().argsort(stable=True, dim=1)[:, :visible]
    return found
