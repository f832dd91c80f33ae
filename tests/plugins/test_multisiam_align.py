"""Alignments checked with maps that carry their own place: what lands in the same cell must come from the same place."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torchvision.ops
from torch import Tensor
from torchvision.ops import roi_align

from twinview.ops.maps import unflip
from twinview.values import Alignment, Geometry, Size, Step
from twinview_multisiam import align
from twinview_multisiam.align import Offset, RoI, Unaligned
from twinview_multisiam.views import IoUCrops

GRID = (7, 7)
PAIRS = 1500


def geometries(n: int = PAIRS, min_iou: float = 0.5, seed: int = 0) -> Geometry:
    """Pairs of views of images of any shape, batched."""
    rng = np.random.default_rng(seed)
    part = IoUCrops(min_iou=min_iou)
    found = [part.sample_views((int(rng.integers(300, 1400)), int(rng.integers(300, 2000))), rng) for _ in range(n)]
    boxes, flips, source = (torch.stack(tensors) for tensors in zip(*[g[:3] for g in found]))
    return Geometry(boxes, flips, source, found[0].sizes, found[0].pairs)


def fake_step(geometry: Geometry, *grids: Size) -> Step:
    """A step that has a geometry and maps of the views' grids."""
    return cast(Step, SimpleNamespace(geometry=geometry, grids=grids or (GRID, GRID)))


def places(geometry: Geometry, view: int, grid: Size = GRID) -> Tensor:
    """[B, 2, h, w]: each cell of the view, as the network saw it, carries where it lies in the source."""
    return geometry.centers(view, grid).mT.reshape(-1, 2, *grid)


def side(geometry: Geometry, view: int) -> Tensor:
    box = geometry.boxes[:, view]
    return (box[:, 2:] - box[:, :2])[..., None, None]


def disagreement(geometry: Geometry, found: Alignment, online: int, target: int, grid: Size = GRID) -> Tensor:
    """[B, h, w]: how far apart the places are that meet in a cell, in cells of the online view."""
    gap = found.online(places(geometry, online, grid)) - found.target(places(geometry, target, grid))
    cells = gap / side(geometry, online) * torch.tensor(GRID[::-1])[:, None, None]
    return cells.square().sum(1).sqrt()


def random_maps(n: int = 6, channels: int = 5, grid: Size = GRID) -> Tensor:
    return torch.randn(n, channels, *grid, generator=torch.Generator().manual_seed(0))


def alike(geometry: Geometry) -> Geometry:
    """Both views at the first one's place, mirrored as they were."""
    return geometry._replace(boxes=geometry.boxes[:, :1].expand(-1, 2, -1))


# ---- RoI
@pytest.mark.parametrize(("online", "target"), [(0, 1), (1, 0)])
def test_roi_puts_the_same_place_into_the_same_cell(online: int, target: int) -> None:
    geometry = geometries()
    gap = disagreement(geometry, RoI().align(fake_step(geometry), online, target), online, target)
    assert gap.mean() < 0.08
    assert gap[:, 2:-2, 2:-2].max() < 1e-3  # all of it is clamping at the border
    assert geometry.flips.any(1).float().mean() > 0.7


def test_the_coordinate_test_would_catch_half_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = geometries()
    monkeypatch.setattr(torchvision.ops, "roi_align", lambda *args, aligned, **kwargs: roi_align(*args, aligned=False, **kwargs))
    assert disagreement(geometry, RoI().align(fake_step(geometry), 0, 1), 0, 1).mean() > 0.12


def test_the_coordinate_test_would_catch_a_forgotten_flip() -> None:
    geometry = geometries()
    forgotten = RoI().align(fake_step(geometry._replace(flips=torch.zeros_like(geometry.flips))), 0, 1)
    assert disagreement(geometry, forgotten, 0, 1).mean() > 1


def test_roi_of_identical_boxes_is_the_map_itself_inside() -> None:
    geometry = alike(geometries(6))
    found = RoI().align(fake_step(geometry), 0, 1)
    z = places(geometry, 0)
    torch.testing.assert_close(found.online(z)[..., 1:-1, 1:-1], unflip(z, geometry.flips[:, 0])[..., 1:-1, 1:-1])
    assert torch.equal(found.online(z), found.target(torch.where((geometry.flips[:, 0] ^ geometry.flips[:, 1])[:, None, None, None], z.flip(3), z)))


def test_roi_of_identical_boxes_smooths_by_an_eighth() -> None:
    """Two samples a cell and axis lie a quarter of a cell off its middle: weights 1/8, 3/4, 1/8."""
    geometry = alike(geometries(6))
    z = random_maps()
    found = RoI().align(fake_step(geometry), 0, 1).online(z)
    kernel = torch.tensor([1.0, 6.0, 1.0]) / 8
    smooth = torch.nn.functional.conv2d(unflip(z, geometry.flips[:, 0]).flatten(0, 1)[:, None], torch.outer(kernel, kernel)[None, None])
    torch.testing.assert_close(found[..., 1:-1, 1:-1], smooth.view(6, 5, 5, 5), rtol=1e-4, atol=1e-5)


def test_roi_takes_maps_of_any_resolution_and_width() -> None:
    geometry = geometries(200)
    found = RoI().align(fake_step(geometry, GRID, (4, 5)), 0, 1)
    assert found.online(random_maps(200, 3, (14, 14))).shape == (200, 3, 7, 7)
    assert disagreement(geometry, found, 0, 1, (28, 28)).mean() < 0.03
    gap = found.online(places(geometry, 0)) - found.target(places(geometry, 1, (14, 10)))
    assert ((gap / side(geometry, 0) * 7).norm(dim=1)).mean() < 0.08


def test_roi_of_another_size() -> None:
    geometry = geometries(200)
    found = RoI(size=5).align(fake_step(geometry), 0, 1)
    assert found.weight.shape == (200, 5, 5) and found.weight.all()
    assert disagreement(geometry, found, 0, 1).shape == (200, 5, 5)
    assert disagreement(geometry, found, 0, 1).mean() < 0.08


def test_regions_are_at_least_half_the_map_where_iou_is_a_half() -> None:
    geometry = geometries()
    for view in (0, 1):
        region = align.intersection_in_view(geometry, 0, 1, view)
        extent = region[:, 2:] - region[:, :2]
        assert extent.min() >= 0.5 - 1e-5 and 0.75 < extent.prod(1).mean() < 0.85
        assert region.min() > -1e-5 and region.max() < 1 + 1e-5


# ---- offset and none
def test_offsets_lead_from_each_online_cell_to_the_targets() -> None:
    geometry = geometries()
    found = Offset().align(fake_step(geometry), 0, 1)
    assert found.extra is not None and found.extra.shape == (PAIRS, 2, 7, 7)
    here, there = found.online(places(geometry, 0)), found.target(places(geometry, 1))
    torch.testing.assert_close(here + found.extra * side(geometry, 0), there, rtol=0, atol=1e-5)


def test_offsets_are_the_affine_function_of_the_specification() -> None:
    geometry = geometries(20)
    extra = Offset().align(fake_step(geometry), 0, 1).extra
    assert extra is not None
    for box, other, found in zip(geometry.boxes[:, 0].tolist(), geometry.boxes[:, 1].tolist(), extra):
        width, height = box[2] - box[0], box[3] - box[1]
        for row in range(7):
            for column in range(7):
                dx = (other[0] - box[0]) + (column + 0.5) * (other[2] - other[0] - width) / 7
                dy = (other[1] - box[1]) + (row + 0.5) * (other[3] - other[1] - height) / 7
                assert found[:, row, column].tolist() == pytest.approx([dx / width, dy / height], abs=1e-5)


def test_offsets_in_source_pixels_are_antisymmetric() -> None:
    geometry = geometries()
    pixels = geometry.source.flip(1)[..., None, None]
    there, back = (align.displacement(geometry, *pair, GRID) * pixels for pair in ((0, 1), (1, 0)))
    assert torch.equal(there, -back) and there.abs().max() > 50


def test_offsets_stay_within_one_at_iou_a_half() -> None:
    geometry = geometries()
    for online, target in geometry.pairs:
        extra = Offset().align(fake_step(geometry), online, target).extra
        assert extra is not None and extra.abs().max() <= 1
        assert 0.1 < extra.flatten(1).abs().amax(1).mean() < 0.5


def test_identical_boxes_have_no_offset() -> None:
    geometry = alike(geometries(50))
    extra = Offset().align(fake_step(geometry), 0, 1).extra
    assert extra is not None and not extra.any()


@pytest.mark.parametrize("part", [Offset(), Unaligned()])
def test_the_others_only_flip_back(part: Any) -> None:
    geometry = geometries(6)
    found, z = part.align(fake_step(geometry), 0, 1), random_maps()
    for view, operator in enumerate((found.online, found.target)):
        for image, flip in enumerate(geometry.flips[:, view]):
            assert torch.equal(operator(z)[image], z[image].flip(2) if flip else z[image])
    assert (found.extra is None) == isinstance(part, Unaligned)
    assert found.weight.shape == (6, 7, 7) and found.weight.all()


@pytest.mark.parametrize("part", [Offset(), Unaligned()])
def test_the_others_bring_maps_to_the_online_views_grid(part: Any) -> None:
    geometry = geometries(6)
    found = part.align(fake_step(geometry, (7, 7), (4, 4)), 0, 1)
    expected = unflip(places(geometry, 1), geometry.flips[:, 1])
    torch.testing.assert_close(found.target(places(geometry, 1, (14, 14))), expected, rtol=0, atol=1e-5)
    coarse = found.target(places(geometry, 1, (4, 4)))
    torch.testing.assert_close(coarse[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=0, atol=1e-5)


# ---- all of them
@pytest.mark.parametrize("part", [RoI(), Offset(), Unaligned()])
def test_images_whose_views_do_not_meet_have_no_weight(part: Any) -> None:
    geometry = geometries(3)
    boxes = geometry.boxes.clone()
    boxes[1] = torch.tensor([[0.0, 0.0, 0.3, 0.3], [0.3, 0.5, 0.9, 0.9]])  # they touch
    found = part.align(fake_step(geometry._replace(boxes=boxes)), 0, 1)
    assert found.weight.flatten(1).sum(1).tolist() == [49, 0, 49]
    assert found.online(random_maps(3)).isfinite().all() and found.target(random_maps(3)).isfinite().all()


@pytest.mark.parametrize("part", [RoI(), Offset(), Unaligned()])
def test_gradient_passes_to_the_map(part: Any) -> None:
    z = random_maps().requires_grad_()
    part.align(fake_step(geometries(6)), 0, 1).online(z).sum().backward()
    assert z.grad is not None and (z.grad.flatten(1).abs().sum(1) > 0).all()


def test_roi_is_float32_under_autocast() -> None:
    geometry = geometries(6)
    plain = RoI().align(fake_step(geometry), 0, 1).online(random_maps().bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = RoI().align(fake_step(geometry), 0, 1).online(random_maps().bfloat16())
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)


def test_traits() -> None:
    assert Offset().traits().extra == 2 and RoI().traits().extra == Unaligned().traits().extra == 0
