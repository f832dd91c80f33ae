"""Masking: hidden cells in blocks (BEiT's generator), as many in every image."""
from __future__ import annotations

import math
import random

import numpy as np
import torch
from attrs import field
from attrs.validators import deep_iterable, ge, gt, lt, min_len
from numpy.typing import NDArray
from torch import Tensor

from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops.checks import masked_views
from twinview.values import Dims, Size

TRIES = 10  # for a block that fits, before single cells make up the count


@part
class Blocks:
    """Blocks of cells hidden from the online branch, exactly as many for every image; published: 118 of 196 in view 0 alone.

    Rectangles of random shape are laid over one another until the count is reached; what ten tries cannot fit is made up by single cells.
    """

    ratio: float = field(default=0.6, validator=[gt(0), lt(1)])  # share of the cells to hide, rounded to whole cells
    count: int = field(default=0, validator=ge(0))  # cells to hide, in place of the ratio; 0: by ratio
    smallest: int = field(default=16, validator=ge(1))  # cells of a block, at least, as long as there is room
    aspect: float = field(default=0.3, validator=[gt(0), lt(1)])  # a block's height : width is log-uniform in aspect .. 1 / aspect
    views: list[int] = field(factory=lambda: [0], validator=[deep_iterable(ge(0)), min_len(1)])  # views with hidden cells

    @hookimpl
    def check(self, dims: Dims) -> None:
        """Raises RecipeError for views or counts that there cannot be."""
        masked_views(self.views, dims, "[masks] siameseim.blocks")
        for view in self.views:
            (height, width), hide = dims.grids[view], self._hide(dims.grids[view])
            if not 0 < hide < height * width:
                fault = f"hides {hide} of the {height} x {width} cells of view {view}"
                raise RecipeError(f"[masks] siameseim.blocks: {fault}. Write a ratio or count that hides some and leaves some, or larger views.")

    @hookimpl
    def make_masks(self, grids: tuple[Size, ...], rng: np.random.Generator) -> tuple[Tensor | None, ...]:
        """[h*w] bool for each of `views`, True = hidden."""
        draws = random.Random(int(rng.integers(2**63)))
        found = {view: block_mask(grids[view], self._hide(grids[view]), draws, self.smallest, self.aspect) for view in sorted(set(self.views))}
        return tuple(torch.from_numpy(found[view].ravel()) if view in found else None for view in range(len(grids)))

    def _hide(self, grid: Size) -> int:
        return self.count or round(self.ratio * grid[0] * grid[1])


def block_mask(grid: Size, count: int, draws: random.Random, smallest: int = 16, aspect: float = 0.3) -> NDArray[np.bool_]:
    """[h, w] bool with exactly `count` cells True, drawn from Python's random numbers as the published masks are."""
    hidden = np.zeros(grid, np.bool_)
    room = count
    while room and (added := _add_block(hidden, room, draws, smallest, aspect)):
        room -= added
    if room:
        free = np.flatnonzero(~hidden).tolist()
        draws.shuffle(free)
        hidden.flat[free[:room]] = True
    return hidden


def _add_block(hidden: NDArray[np.bool_], room: int, draws: random.Random, smallest: int, aspect: float) -> int:
    """Hide one more block of at most `room` new cells; how many are new, 0 where ten tries found none."""
    height, width = hidden.shape
    for _ in range(TRIES):
        area = draws.uniform(smallest, room)  # also when room < smallest, as published: then from room up
        slant = math.exp(draws.uniform(math.log(aspect), -math.log(aspect)))
        h, w = round(math.sqrt(area * slant)), round(math.sqrt(area / slant))
        if h >= height or w >= width:
            continue
        top, left = draws.randint(0, height - h), draws.randint(0, width - w)
        block = hidden[top : top + h, left : left + w]
        new = h * w - int(block.sum())
        if 0 < new <= room:
            block[:] = True
            return new
    return 0
