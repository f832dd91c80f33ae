"""Alignment by resemblance: each cell meets the cell of the other view whose backbone features are nearest (DenseCL, eq. 3)."""
from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from twinview.hooks import hookimpl, part
from twinview.ops import cosine_pairs, resize_map
from twinview.values import Alignment, Size, Step, Traits


@part
class Correspondence:
    """c(i) = argmax_j cos(f_i, f'_j) over the cells of the same image: online features of one view, target features of the other.

    Features are the encoder's `cells`, never projections.  No geometry is used; several cells may meet the same one, and none is left out.
    """

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells."""
        return Traits(needs=frozenset({"cells"}))

    @hookimpl
    def align(self, step: Step, online: int, target: int) -> Alignment:
        """Online maps as they are, target maps with the cells that were met; no gradient goes through the choice."""
        own, other = step.online[online].at("cells").detach(), step.target[target].at("cells").detach()
        grid, there = (own.shape[2], own.shape[3]), (other.shape[2], other.shape[3])
        match = cosine_pairs(own, other).argmax(2)
        step.note("correspondence/used", share_met(match, there))
        weight = torch.ones(len(own), *grid, device=own.device)
        return Alignment(online=partial(resize_map, grid=grid), target=partial(meet, match=match, there=there, grid=grid), weight=weight)


def meet(maps: Tensor, match: Tensor, there: Size, grid: Size) -> Tensor:
    """Maps [B, C, h, w] -> [B, C, *grid]: at place i the cell `match` [B, P] of the map, brought to the grid `there` that `match` counts."""
    cells = resize_map(maps, there).flatten(2)
    return cells.gather(2, match[:, None].expand(-1, cells.shape[1], -1)).view(*cells.shape[:2], *grid)


def share_met(match: Tensor, there: Size) -> Tensor:
    """[B]: the share of the target's cells that any online cell meets; 1 of all where all meet the same."""
    cells = there[0] * there[1]
    met = torch.zeros(len(match), cells, device=match.device).scatter_(1, match, 1)
    return met.mean(1)
