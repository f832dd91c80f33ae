"""Cells hidden each by itself (He et al. 2022, MAE)."""
from __future__ import annotations

import numpy as np
import torch
from attrs import field
from attrs.validators import deep_iterable, ge, gt, lt, min_len
from torch import Tensor

from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops.checks import masked_views
from twinview.values import Dims, Size


@part
class Random:
    """Random masks: round(ratio * cells) cells of each masked view are hidden from the online branch, any cells equally likely."""

    ratio: float = field(default=0.75, validator=[gt(0), lt(1)])  # share of the cells that is hidden
    views: list[int] = field(factory=lambda: [0], validator=deep_iterable(ge(0), min_len(1)))  # that are masked, counted from 0

    @hookimpl
    def check(self, dims: Dims) -> None:
        """Raises RecipeError for a view, or a count, that there cannot be."""
        masked_views(self.views, dims, "[masks] masks.random")
        for view in self.views:
            height, width = dims.grids[view]
            if not 0 < (hide := self._hide(dims.grids[view])) < height * width:
                fault = f"hides {hide} of the {height} x {width} cells of view {view}"
                raise RecipeError(f"[masks] masks.random: {fault}. Write a ratio that hides some and leaves some, or larger views.")

    @hookimpl
    def make_masks(self, grids: tuple[Size, ...], rng: np.random.Generator) -> tuple[Tensor | None, ...]:
        """[h*w] bool for each of `views`, True = hidden."""
        return tuple(self._mask(grid, rng) if view in self.views else None for view, grid in enumerate(grids))

    def _mask(self, grid: Size, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.permutation(grid[0] * grid[1]) < self._hide(grid))

    def _hide(self, grid: Size) -> int:
        return round(self.ratio * grid[0] * grid[1])
