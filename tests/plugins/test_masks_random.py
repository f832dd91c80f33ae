from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from twinview import recipe
from twinview.errors import RecipeError
from twinview.values import Dims, EncoderSpec, Level, Size
from twinview_masks import parts
from twinview_masks.random import Random

DIMS = Dims(
    encoder=EncoderSpec(pooled=8, cells=Level(8, 16)), grids=((4, 6), (2, 2)), sizes=((64, 96), (32, 32)), pairs=((0, 1),), global_batch=4, dataset_size=8
)


def draw(seed: int, *grids: Size, **options: Any) -> tuple[Tensor | None, ...]:
    return Random(**options).make_masks(grids=grids, rng=np.random.default_rng(seed))


@pytest.mark.parametrize(("grid", "ratio", "count"), [((14, 14), 0.75, 147), ((14, 14), 0.6, 118), ((3, 5), 0.5, 8), ((2, 2), 0.25, 1)])
def test_the_count_is_exact_for_every_image(grid: Size, ratio: float, count: int) -> None:
    for seed in range(50):
        hidden, other = draw(seed, grid, grid, ratio=ratio)
        assert hidden is not None and hidden.dtype == torch.bool and hidden.shape == (grid[0] * grid[1],)
        assert hidden.sum() == count and other is None


def test_every_cell_is_hidden_equally_often() -> None:
    often = torch.stack([m for seed in range(3000) if (m := draw(seed, (4, 6), ratio=0.5)[0]) is not None]).float().mean(0)
    assert (often - 0.5).abs().max() < 4.5 * 0.5 / 3000**0.5
    neighbors = torch.stack([m for seed in range(3000) if (m := draw(seed, (4, 6), ratio=0.5)[0]) is not None])[:, :2].float()
    agree = (neighbors[:, 0] == neighbors[:, 1]).float().mean()
    assert agree == pytest.approx(11 / 23, abs=0.04)  # as without replacement: 11 of the other 23 cells


def test_views_that_are_masked_differ_and_follow_the_draws() -> None:
    a, b, c = draw(0, (8, 8), (8, 8), (4, 4), views=[0, 2])
    assert a is not None and b is None and c is not None and c.sum() == 12
    first, second = draw(0, (8, 8), (8, 8), views=[0, 1])
    assert first is not None and second is not None and not torch.equal(first, second)
    again = draw(0, (8, 8), (8, 8), views=[0, 1])[1]
    assert again is not None and torch.equal(second, again)


def test_what_cannot_be_is_refused() -> None:
    Random(views=[0, 1]).check(attrs.evolve(DIMS, pairs=((0, 1), (1, 0))))
    with pytest.raises(RecipeError, match=r"\[masks\] masks.random: views names view 1, which is online in no pair of these views. Write views = \[0\]\."):
        Random(views=[0, 1]).check(DIMS)
    with pytest.raises(RecipeError, match=r"\[masks\] masks.random: views names view 2; views are counted from 0, and there are 2\."):
        Random(views=[2]).check(DIMS)
    with pytest.raises(RecipeError, match=r"hides 4 of the 2 x 2 cells of view 1"):
        Random(views=[1], ratio=0.9).check(attrs.evolve(DIMS, pairs=((1, 0),)))
    with pytest.raises(RecipeError, match=r"hides 0 of the 1 x 1 cells"):
        Random(ratio=0.3).check(attrs.evolve(DIMS, grids=((1, 1), (1, 1))))
    for change, message in (({"ratio": 1.0}, "ratio must be < 1"), ({"views": []}, "views"), ({"ratios": 0.5}, "Did you mean 'ratio'?")):
        with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
            recipe.structure(change, parts()["random"], "[masks] masks.random")
