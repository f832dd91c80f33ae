"""siameseim.crops and siameseim.blocks: laws, counts, grids, and what is refused."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from twinview.errors import RecipeError
from twinview.values import Dims, EncoderSpec, Geometry, Level, Size
from twinview_siameseim.masks import Blocks
from twinview_siameseim.positions import relate
from twinview_siameseim.views import Crops

GRID = (14, 14)


@pytest.fixture(scope="module")
def pairs() -> Geometry:
    """4000 pairs of an image of 500 x 375, batched."""
    rng, part = np.random.default_rng(0), Crops()
    drawn = [part.sample_views((375, 500), rng) for _ in range(4000)]
    boxes, flips, source = (torch.stack(tensors) for tensors in zip(*[g[:3] for g in drawn]))
    return Geometry(boxes, flips, source, drawn[0].sizes, drawn[0].pairs)


# ---- views
def test_one_view_predicts_the_other_and_not_the_other_way(pairs: Geometry) -> None:
    assert pairs.pairs == ((0, 1),) and pairs.sizes == ((224, 224), (224, 224)) and not pairs.notes


def test_pairs_meet_as_often_as_published(pairs: Geometry) -> None:
    """Over 20 000 official pairs: 59 % of the target's cells lie inside the online view, in 3.4 % of pairs none, IoU 0.38, s_h 0.39 to 2.54."""
    relation = relate(pairs, 0, 1, (GRID, GRID))
    rows, columns = (((p > -0.5) & (p < 13.5)).float() for p in (relation.rows, relation.columns))
    inside = rows[:, :, None] * columns[:, None]
    assert float(inside.mean()) == pytest.approx(0.59, abs=0.02)
    assert float((inside.sum((1, 2)) == 0).float().mean()) == pytest.approx(0.034, abs=0.012)
    assert float(pairs.iou().mean()) == pytest.approx(0.38, abs=0.015)
    low, high = torch.quantile(relation.scales[:, 0], torch.tensor([0.01, 0.99])).tolist()
    assert low == pytest.approx(0.39, abs=0.03) and high == pytest.approx(2.54, abs=0.15)


def test_flips_are_independent_coins(pairs: Geometry) -> None:
    for count in torch.bincount(pairs.flips[:, 0] * 2 + pairs.flips[:, 1].long(), minlength=4):
        assert abs(count / 4000 - 0.25) < 0.03


@pytest.mark.parametrize("size", [(100, 640), (400, 90)])
def test_a_picture_that_is_too_narrow_gives_its_middle(size: Size) -> None:
    rng = np.random.default_rng(0)
    drawn = [Crops(scale=(0.9, 1.0)).sample_views(size, rng) for _ in range(5)]
    height, width = size
    for g in drawn:
        box = g.boxes * torch.tensor([width, height, width, height])
        sides = box[:, 2:] - box[:, :2]
        assert torch.allclose((box[:, :2] + box[:, 2:]) / 2, torch.tensor([width / 2, height / 2]).expand(2, 2), atol=0.51)
        assert float(sides.min()) == min(size) and float(sides.max()) == round(min(size) * 4 / 3)


# ---- masks
def dims(*grids: Size) -> Dims:
    spec = EncoderSpec(pooled=8, cells=Level(8, 16))
    return Dims(encoder=spec, grids=grids, sizes=tuple((16 * h, 16 * w) for h, w in grids), pairs=((0, 1),), global_batch=4, dataset_size=8)


@pytest.mark.parametrize(("options", "grid", "count"), [
    ({}, (14, 14), 118), ({"ratio": 0.38}, (14, 14), 74), ({"count": 75}, (14, 14), 75), ({"count": 39}, (8, 8), 39), ({"smallest": 4}, (4, 4), 10),
    ({}, (7, 20), 84), ({}, (3, 2), 4), ({"ratio": 0.99}, (14, 14), 194),
])
def test_the_count_is_the_same_for_every_image(options: dict[str, Any], grid: Size, count: int) -> None:
    rng, part = np.random.default_rng(0), Blocks(**options)
    part.check(dims(grid, grid))
    for _ in range(50):
        hidden, other = part.make_masks((grid, grid), rng)
        assert hidden is not None and hidden.dtype == torch.bool and hidden.shape == (grid[0] * grid[1],) and int(hidden.sum()) == count
        assert other is None


def test_the_views_that_are_asked_for_are_masked_each_by_itself() -> None:
    first, second, third = Blocks(views=[2, 0]).make_masks((GRID, GRID, (7, 7)), np.random.default_rng(0))
    assert first is not None and second is None and third is not None and first.shape == (196,) and third.shape == (49,)
    both = Blocks(views=[0, 1]).make_masks((GRID, GRID), np.random.default_rng(0))
    assert both[0] is not None and both[1] is not None and not torch.equal(both[0], both[1])


def test_masks_follow_the_generator_that_is_given() -> None:
    def drawn(seed: int) -> torch.Tensor:
        found = Blocks().make_masks((GRID, GRID), np.random.default_rng(seed))[0]
        assert found is not None
        return found

    assert torch.equal(drawn(3), drawn(3)) and not torch.equal(drawn(3), drawn(4))


@pytest.mark.parametrize(("options", "line"), [
    ({"views": [2]}, "views names view 2; views are counted from 0, and there are 2."),
    ({"views": [1]}, r"views names view 1, which is online in no pair of these views. Write views = \[0\]"),
    ({"count": 196}, "hides 196 of the 14 x 14 cells of view 0. Write a ratio"),
    ({"ratio": 0.001}, "hides 0 of the 14 x 14 cells"),
])
def test_masks_that_cannot_be_are_refused_before_the_run(options: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        Blocks(**options).check(dims(GRID, GRID))


@pytest.mark.parametrize("options", [{"ratio": 0.0}, {"ratio": 1.0}, {"count": -1}, {"smallest": 0}, {"aspect": 1.0}, {"views": []}, {"views": [-1]}])
def test_impossible_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Blocks(**options)
