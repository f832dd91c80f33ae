from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twinview.errors import RecipeError
from twinview.ops.crops import Box, random_resized_box
from twinview.recipe import structure
from twinview.values import Geometry, box_area
from twinview_multisiam.views import IoUCrops, box_iou


def pixels(geometry: Geometry) -> tuple[Box, Box]:
    """Both boxes; each corner is a whole pixel."""
    height, width = geometry.source.tolist()
    found = geometry.boxes.double() * torch.tensor([width, height, width, height])
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-3)
    first, second = found.round().long().tolist()
    return tuple(first), tuple(second)


def draw(part: IoUCrops, n: int, size: tuple[int, int], seed: int = 0) -> Geometry:
    """n images' geometries, batched."""
    rng = np.random.default_rng(seed)
    found = [part.sample_views(size, rng) for _ in range(n)]
    boxes, flips, source = (torch.stack(tensors) for tensors in zip(*[g[:3] for g in found]))
    notes = {name: torch.stack([g.notes[name] for g in found]) for name in found[0].notes}
    return Geometry(boxes, flips, source, found[0].sizes, found[0].pairs, notes)


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    min_iou=st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.95]),
    tries=st.sampled_from([1, 3, 50]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_accepted_pair_overlaps_enough(size: tuple[int, int], min_iou: float, tries: int, seed: int) -> None:
    geometry = IoUCrops(min_iou=min_iou, tries=tries).sample_views(size, np.random.default_rng(seed))
    boxes = pixels(geometry)
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]
    fallback = bool(geometry.notes["fallback"])
    assert 1 <= geometry.notes["tries"] <= tries
    iou = box_iou(*boxes)
    assert fallback or iou >= min_iou
    assert not fallback or geometry.notes["tries"] == tries
    assert min_iou == 0 or iou > 0  # an alignment needs a place that both views show
    assert float(geometry.iou()) == pytest.approx(iou, abs=1e-4)
    assert geometry.pairs == ((0, 1), (1, 0)) and geometry.sizes == ((224, 224),) * 2


# image (height, width), then as measured for the written specification: P(accept), draws, mean crop area of all pairs and of accepted ones
TABLE = [((1280, 1920), 0.262, 3.8, 0.388, 0.494), ((375, 500), 0.307, 3.3, 0.432, 0.553)]


@pytest.mark.parametrize(("size", "accept", "draws", "area", "accepted"), TABLE)
def test_the_gate_accepts_and_shifts_as_tabulated(size: tuple[int, int], accept: float, draws: float, area: float, accepted: float) -> None:
    gated, free = draw(IoUCrops(), 5000, size), draw(IoUCrops(min_iou=0), 5000, size)
    tries = gated.notes["tries"]
    assert float(1 / tries.mean()) == pytest.approx(accept, abs=0.012)
    assert float(tries.mean()) == pytest.approx(draws, abs=0.2)
    assert float((free.iou() >= 0.5).float().mean()) == pytest.approx(accept, abs=0.025)
    assert float(box_area(free.boxes).mean()) == pytest.approx(area, abs=0.01)
    assert float(box_area(gated.boxes).mean()) == pytest.approx(accepted, abs=0.01)
    assert (free.notes["tries"] == 1).all() and gated.notes["fallback"].mean() < 1e-3


def test_both_boxes_are_drawn_anew() -> None:
    """Were the first kept, its mean area would stay at 0.388 while the second's rose."""
    area = box_area(draw(IoUCrops(), 5000, (1280, 1920)).boxes).mean(0)
    assert float(area[0]) == pytest.approx(float(area[1]), abs=0.015)
    assert float(area[0]) > 0.47


def test_the_best_pair_is_kept_and_counted() -> None:
    size, part = (480, 640), IoUCrops(min_iou=0.999, tries=6)
    rng = np.random.default_rng(5)
    tried = [(random_resized_box(size, rng), random_resized_box(size, rng)) for _ in range(6)]
    best = max(tried, key=lambda pair: box_iou(*pair))
    found = part.sample_views(size, np.random.default_rng(5))
    assert pixels(found) == best
    assert found.notes == {"tries": 6, "fallback": 1}


def test_boxes_that_never_meet_become_one() -> None:
    part = IoUCrops(tries=1, scale=(0.001, 0.002))
    geometry = draw(part, 50, (1000, 1000))
    assert (geometry.iou() > 0).all()
    assert (geometry.boxes[:, 0] == geometry.boxes[:, 1]).all(1).any()
    assert (draw(IoUCrops(min_iou=0, scale=(0.001, 0.002)), 50, (1000, 1000)).iou() == 0).any()  # without a gate nothing is promised


def test_views_are_mirrored_each_by_itself() -> None:
    flips = draw(IoUCrops(min_iou=0), 4000, (300, 300)).flips.float()
    assert flips.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert float((flips[:, 0] * flips[:, 1]).mean()) == pytest.approx(0.25, abs=0.03)
    assert not draw(IoUCrops(flip=0), 50, (300, 300)).flips.any() and draw(IoUCrops(flip=1), 50, (300, 300)).flips.all()


def test_the_generator_alone_decides() -> None:
    one, other, third = draw(IoUCrops(), 5, (360, 480), 1), draw(IoUCrops(), 5, (360, 480), 1), draw(IoUCrops(), 5, (360, 480), 2)
    assert torch.equal(one.boxes, other.boxes) and torch.equal(one.flips, other.flips) and not torch.equal(one.boxes, third.boxes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_iou": 1.5}, ": min_iou must be <= 1: 1.5."),
        ({"size": 0}, ": size must be > 0: 0."),
        ({"tries": 0}, ": tries must be >= 1: 0."),
        ({"scale": [0.5, 0.2]}, ": scale wants two numbers above 0, the second no smaller, not [0.5, 0.2]."),
        ({"scale": [0.0, 1.0]}, ": scale wants two numbers above 0, the second no smaller, not [0.0, 1.0]."),
        ({"scale": [0.2, 1.5]}, ": scale is a share of the image's area and wants numbers up to 1, not [0.2, 1.5]."),
        ({"ratio": [2.0, 1.0]}, ": ratio wants two numbers above 0, the second no smaller, not [2.0, 1.0]."),
        ({"flip": -0.1}, ": flip must be >= 0: -0.1."),
        ({"iou": 0.5}, ": nothing takes 'iou'. Did you mean 'min_iou'?"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape("[views] multisiam.iou_crops" + said)):
        structure(options, IoUCrops, "[views] multisiam.iou_crops")
