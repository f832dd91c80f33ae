"""The grid over the overlap: the same places in both views, for any boxes and flips; and the views for segmentation."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twinview.api import check
from twinview.errors import RecipeError
from twinview.values import Alignment, Geometry, cell_centers
from twinview_densesiam import CropAndWhole, GridSample
from twinview_densesiam.align import overlap_points, sample_map
from twinview_densesiam.views import central_box


class Step:
    """As much of a step as an alignment asks for."""

    def __init__(self, geometry: Geometry, grids: tuple[tuple[int, int], ...]) -> None:
        self.geometry, self.notes = geometry, dict[str, Tensor]()
        self.grids = grids

    def note(self, name: str, value: Tensor) -> None:
        self.notes[name] = value


def align(part: GridSample, geometry: Geometry, online: int, target: int, *grids: tuple[int, int]) -> tuple[Alignment, Step]:
    step: Any = Step(geometry, grids)
    return part.align(step, online, target), step


def random_geometry(n: int, seed: int) -> Geometry:
    rng = np.random.default_rng(seed)
    corner, side = rng.random((n, 2, 2)), 0.15 + 0.6 * rng.random((n, 2, 2))
    low = corner * (1 - side)
    boxes = torch.from_numpy(np.concatenate([low, low + side], -1).astype(np.float32))
    return Geometry(boxes, torch.from_numpy(rng.random((n, 2)) < 0.5), torch.full((n, 2), 300.0), ((64, 64), (64, 64)), ((0, 1), (1, 0)))


def places(geometry: Geometry, view: int, grid: tuple[int, int]) -> Tensor:
    """[B, 2, h, w]: a map whose feature is its own place in the source."""
    return geometry.centers(view, grid).mT.reshape(len(geometry.boxes), 2, *grid)


def unclamped(geometry: Geometry, points: Tensor, view: int, grid: tuple[int, int]) -> Tensor:
    """[B, P]: points that lie between the middles of the outermost cells of a view's map."""
    own = geometry.to_view(points, view)
    half = torch.tensor([0.5 / grid[1], 0.5 / grid[0]])
    return ((own >= half) & (own <= 1 - half)).all(-1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 9), st.integers(3, 9), st.integers(1, 9))
def test_both_views_are_sampled_at_the_same_places(seed: int, height: int, width: int, grid: int) -> None:
    geometry, cells = random_geometry(16, seed), (height, width)
    found, _ = align(GridSample(grid=grid), geometry, 0, 1, cells, cells)
    points, weight = overlap_points(geometry, 0, 1, (grid, grid))
    assert torch.equal(found.weight, weight)
    for view, operator in ((0, found.online), (1, found.target)):
        read = operator(places(geometry, view, cells)).flatten(2).mT
        sure = unclamped(geometry, points, view, cells) & (weight.flatten(1) > 0)
        assert torch.allclose(read[sure], points[sure], atol=2e-5)
        error = (read - points).abs()[weight.flatten(1) > 0]
        assert not len(error) or float(error.max()) < 0.5 * 0.75 / min(cells) + 1e-5  # a clamped point is half a cell off at most


def test_points_fill_the_overlap_evenly() -> None:
    geometry = random_geometry(64, 3)
    points, weight = overlap_points(geometry, 0, 1, (4, 5))
    box, meets = geometry.overlap(), weight[:, 0, 0] > 0
    assert bool(meets.any()) and not bool(meets.all())
    inside = (points - box[:, None, :2]) / (box[:, None, 2:] - box[:, None, :2])
    assert torch.allclose(inside[meets], cell_centers((4, 5)).expand(int(meets.sum()), -1, -1), atol=1e-4)


def test_empty_overlaps_count_for_nothing_and_are_counted() -> None:
    geometry = random_geometry(64, 5)
    empty = geometry.iou() == 0
    assert 0 < int(empty.sum()) < 64
    for part in (GridSample(), GridSample(points="online")):
        found, step = align(part, geometry, 0, 1, (6, 6), (6, 6))
        assert torch.equal(found.weight.flatten(1).sum(1) == 0, empty) or part.points == "online"
        assert not bool(found.weight[empty].any()) and torch.equal(step.notes["grid_sample/empty"], empty.float())
        assert bool(found.online(torch.randn(64, 3, 6, 6)).isfinite().all()) and bool(found.target(torch.randn(64, 3, 6, 6)).isfinite().all())


def test_the_online_views_own_cells() -> None:
    geometry = random_geometry(32, 7)
    found, _ = align(GridSample(points="online"), geometry, 1, 0, (5, 6), (4, 7))
    maps = torch.randn(32, 3, 4, 7)
    assert torch.equal(found.online(maps), maps)  # nothing is resampled
    own = geometry.centers(1, (4, 7))
    inside = geometry.to_view(own, 0)
    assert torch.equal(found.weight.flatten(1) > 0, ((inside >= 0) & (inside <= 1)).all(-1))
    read = found.target(places(geometry, 0, (5, 6))).flatten(2).mT
    sure = unclamped(geometry, own, 0, (5, 6))
    assert bool(sure.any()) and torch.allclose(read[sure], own[sure], atol=2e-5)


def test_any_resolution_and_width_goes_through() -> None:
    geometry = random_geometry(4, 1)
    found, _ = align(GridSample(), geometry, 0, 1, (6, 6), (6, 6))
    for channels, size in ((1, 3), (7, 12)):
        assert found.online(torch.randn(4, channels, size, size)).shape == (4, channels, 6, 6)
    low = found.target(torch.randn(4, 2, 6, 6, dtype=torch.bfloat16))
    assert low.dtype == torch.float32


def test_gradients_reach_both_maps() -> None:
    found, _ = align(GridSample(), random_geometry(8, 2), 0, 1, (6, 6), (6, 6))
    for operator in (found.online, found.target):
        maps = torch.randn(8, 2, 6, 6, requires_grad=True)
        operator(maps).sum().backward()  # type: ignore[no-untyped-call]
        assert maps.grad is not None and float(maps.grad.sum()) == pytest.approx(8 * 2 * 36, rel=1e-4)  # weights of a bilinear sample add up to 1


def test_sampling_equals_a_plain_formula() -> None:
    torch.manual_seed(0)
    maps, points = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 6, 7, 2, dtype=torch.float64)
    found = sample_map(maps, points)
    for image in range(2):
        for row in range(6):
            for column in range(7):
                x = float((points[image, row, column, 0] * 5 - 0.5).clamp(0, 4))
                y = float((points[image, row, column, 1] * 4 - 0.5).clamp(0, 3))
                x0, y0 = min(int(x), 3), min(int(y), 2)
                top = maps[image, :, y0, x0] * (1 - x + x0) + maps[image, :, y0, x0 + 1] * (x - x0)
                bottom = maps[image, :, y0 + 1, x0] * (1 - x + x0) + maps[image, :, y0 + 1, x0 + 1] * (x - x0)
                assert torch.allclose(found[image, :, row, column], top * (1 - y + y0) + bottom * (y - y0), atol=1e-12)


# ---- views
def test_a_crop_of_the_whole() -> None:
    part, rng = CropAndWhole(size=(60, 80), scale=(0.5, 1.0)), np.random.default_rng(0)
    found = [part.sample_views((360, 480), rng) for _ in range(400)]
    boxes = torch.stack([g.boxes for g in found])
    assert torch.allclose(boxes[:, 1], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    sides = boxes[:, 0, 2:] - boxes[:, 0, :2]
    assert torch.allclose(sides[:, 0], sides[:, 1], atol=1e-6) and float(sides.min()) >= 0.5 and float(sides.max()) <= 1
    assert 0.72 < float(sides.mean()) < 0.78 and not bool(torch.stack([g.flips[1] for g in found]).any())
    assert 0.4 < float(torch.stack([g.flips[0] for g in found]).float().mean()) < 0.6
    draws = {name: torch.stack([g.notes[name] for g in found]) for name in ("crop_scale", "crop_row", "crop_column")}
    assert torch.allclose(sides[:, 0], draws["crop_scale"].float(), atol=1e-6)
    assert torch.allclose(boxes[:, 0, 1], (draws["crop_row"] * (1 - draws["crop_scale"])).float(), atol=1e-6)
    assert torch.allclose(boxes[:, 0, 0], (draws["crop_column"] * (1 - draws["crop_scale"])).float(), atol=1e-6)
    assert found[0].sizes == ((60, 80), (60, 80)) and found[0].pairs == ((0, 1), (1, 0))


@pytest.mark.parametrize(("source", "shape", "box"), [
    ((300, 400), (1, 1), (0.125, 0, 0.875, 1)), ((400, 300), (320, 320), (0, 0.125, 1, 0.875)), ((300, 400), (3, 4), (0, 0, 1, 1)), ((100, 100), (1, 2), (0, 0.25, 1, 0.75)),
])
def test_the_picture_is_the_largest_central_box(source: tuple[int, int], shape: tuple[int, int], box: tuple[float, ...]) -> None:
    assert np.allclose(central_box(source, shape), box)


def test_a_replay_samples_the_whole_view_near_the_crops_own_places() -> None:
    part, rng = CropAndWhole(size=(64, 64)), np.random.default_rng(1)
    made = [part.sample_views((128, 128), rng) for _ in range(32)]
    notes = {name: torch.stack([g.notes[name] for g in made]) for name in made[0].notes}
    geometry = made[0]._replace(boxes=torch.stack([g.boxes for g in made]), flips=torch.stack([g.flips for g in made]), notes=notes)
    for online, target in ((0, 1), (1, 0)):
        found, _ = align(GridSample(replay=True), geometry, online, target, (16, 16), (16, 16))
        crop, whole = (found.online, found.target) if online == 0 else (found.target, found.online)
        maps = places(geometry, 0, (16, 16))
        assert torch.equal(crop(maps), maps) and bool((found.weight == 1).all())
        error = (whole(places(geometry, 1, (16, 16))) - maps).abs() * 16  # cells of the whole view
        assert 0.05 < float(error.mean()) < 1 and float(error.max()) < 2.5


# ---- what is refused
def segmenting(**align: Any) -> dict[str, Any]:
    from twinview.recipe import find, read

    table = read(find("densesiam/quickstart")).table()
    return table | {"align": {"use": "densesiam.grid_sample", **align}}


@pytest.mark.parametrize(("table", "message"), [
    (segmenting(replay=True, grid=7), "grid is for points"),
    (segmenting(points="online", grid=7), "grid is for points"),
    (segmenting(points="online", replay=True), "replay has points of its own"),
    (segmenting(replay=True) | {"views": {"use": "byol.crops"}}, "needs crop_draws, and [views] byol.crops does not note them"),
])
def test_options_that_do_not_go_together(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check(table)
    assert message in str(caught.value) and "\n" not in str(caught.value)
