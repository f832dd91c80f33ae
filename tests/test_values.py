"""Places are the same wherever they are asked for: flips, all shapes, batched."""
from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from twinview.values import Geometry, box_area, cell_centers

SIZES = ((32, 48), (16, 16), (20, 8))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    lead = draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    views = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**31))
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(*lead, views, 2, generator=g, dtype=torch.float64) * 0.9
    high = low + 0.01 + torch.rand(*lead, views, 2, generator=g, dtype=torch.float64) * (0.99 - low)
    flips = torch.rand(*lead, views, generator=g) < 0.5
    pairs = tuple((i, j) for i in range(views) for j in range(views) if i != j)
    return Geometry(torch.cat([low, high], -1), flips, torch.full((*lead, 2), 100.0), SIZES[:views], pairs)


@given(geometries(), st.integers(1, 7), st.integers(0, 2))
def test_to_view_undoes_to_source(g: Geometry, points: int, view: int) -> None:
    view %= g.boxes.shape[-2]
    p = torch.rand(*g.boxes.shape[:-2], points, 2, dtype=torch.float64)
    assert torch.allclose(g.to_view(g.to_source(p, view), view), p, atol=1e-9)
    assert torch.allclose(g.to_source(g.to_view(p, view), view), p, atol=1e-9)


@given(geometries(), st.integers(0, 2))
def test_corners_and_flips(g: Geometry, view: int) -> None:
    view %= g.boxes.shape[-2]
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    found = g.to_source(corners, view)
    box, flip = g.boxes[..., view, :], g.flips[..., view]
    assert torch.allclose(found[..., 0, 0], torch.where(flip, box[..., 2], box[..., 0]))  # the view's left edge
    assert torch.allclose(found[..., 1, 0], torch.where(flip, box[..., 0], box[..., 2]))
    assert torch.allclose(found[..., :, 1], box[..., [1, 3]])  # never upside down


@given(geometries(), st.integers(1, 5), st.integers(1, 5))
def test_centers_lie_inside_and_average_to_the_middle(g: Geometry, height: int, width: int) -> None:
    for view in range(g.boxes.shape[-2]):
        centers, box = g.centers(view, (height, width)), g.boxes[..., view, :]
        assert centers.shape == (*g.boxes.shape[:-2], height * width, 2)
        assert bool((centers >= box[..., None, :2]).all()) and bool((centers <= box[..., None, 2:]).all())
        assert torch.allclose(centers.mean(-2), (box[..., :2] + box[..., 2:]) / 2)


@given(geometries())
def test_overlap_is_what_both_see(g: Geometry) -> None:
    views = g.boxes.shape[-2]
    i, j = 0, views - 1
    both = g.overlap(i, j)
    assert torch.equal(both, g.overlap(j, i))
    p = torch.rand(*g.boxes.shape[:-2], 50, 2, dtype=torch.float64)

    def inside(box: Tensor) -> Tensor:
        return ((p >= box[..., None, :2]) & (p <= box[..., None, 2:])).all(-1)

    assert torch.equal(inside(both), inside(g.boxes[..., i, :]) & inside(g.boxes[..., j, :]))
    iou = g.iou(i, j)
    assert bool(((iou >= 0) & (iou <= 1 + 1e-12)).all())
    assert torch.allclose(g.iou(i, i), torch.ones_like(iou))


@given(geometries())
def test_a_batch_is_its_images_one_by_one(g: Geometry) -> None:
    if g.boxes.ndim != 3:
        return
    p = torch.rand(g.boxes.shape[0], 4, 2, dtype=torch.float64)
    for b in range(g.boxes.shape[0]):
        one = g._replace(boxes=g.boxes[b], flips=g.flips[b], source=g.source[b])
        assert torch.equal(g.to_source(p, 0)[b], one.to_source(p[b], 0))
        assert torch.equal(g.overlap(0, -1)[b], one.overlap(0, -1))


def test_known_places() -> None:
    g = Geometry(torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.5, 0.75, 1.0]]), torch.tensor([False, True]), torch.tensor([100, 200]), ((8, 8), (4, 4)), ((0, 1),))
    assert g.to_source(torch.tensor([[0.5, 0.5]]), 0).tolist() == [[0.25, 0.5]]
    assert g.to_source(torch.tensor([[0.0, 0.0]]), 1).tolist() == [[0.75, 0.5]]  # mirrored: its left edge is the source's right
    assert g.overlap().tolist() == [0.25, 0.5, 0.5, 1.0]
    assert abs(float(g.iou()) - 0.125 / (0.5 + 0.25 - 0.125)) < 1e-6
    assert box_area(torch.tensor([0.5, 0.0, 0.25, 1.0])) == 0  # empty
    assert cell_centers((1, 2)).tolist() == [[0.25, 0.5], [0.75, 0.5]]
