"""The canvas under the scenes: areas, borders, stripes and rays against what geometry says."""
from __future__ import annotations

import numpy as np
import pytest

from twinview.data.scenes.canvas import Camera, Canvas, Dice, grain, noise, pulses, rgb

CAMERA = Camera(focal=100.0, x=60.0, y=40.0, above=1.5, roll=0.03)
WHITE = rgb(1, 1, 1)


def canvas() -> Canvas:
    return Canvas(80, 120, CAMERA)


@pytest.mark.parametrize("order", [1, -1])
def test_polygon_covers_its_area(order: int) -> None:
    page = canvas()
    page.polygon([(10.3, 12.6), (70.1, 20.2), (55.5, 61.7), (17.2, 50.4)][::order], WHITE, 1)
    area = 0.5 * abs(10.3 * 20.2 - 70.1 * 12.6 + 70.1 * 61.7 - 55.5 * 20.2 + 55.5 * 50.4 - 17.2 * 61.7 + 17.2 * 12.6 - 10.3 * 50.4)
    assert page.pixels[0].sum() == pytest.approx(area, rel=2e-3)
    assert (page.labels == 1).sum() == pytest.approx(area, rel=1e-2)


def test_ellipse_ring_and_line_cover_their_areas() -> None:
    page = canvas()
    page.ellipse((60, 40), 30, 20, WHITE, 1)
    assert (page.labels == 1).sum() == pytest.approx(np.pi * 600, rel=1e-2)
    page = canvas()
    page.ring((60, 40), 20, 20, 4, WHITE, 1)
    assert page.pixels[0].sum() == pytest.approx(np.pi * (20**2 - 16**2), rel=2e-2)
    page = canvas()
    page.line((20, 30), (80, 50), 6, WHITE, 1)
    assert page.pixels[0].sum() == pytest.approx(6 * np.hypot(60, 20) + np.pi * 9, rel=1e-2)


def test_paint_is_labeled_where_it_covers_half() -> None:
    page = canvas()
    page.polygon([(10.5, 10), (20.25, 10), (20.25, 20), (10.5, 20)], WHITE, 1)
    row = page.pixels[0, 15]
    assert row[10] == pytest.approx(0.5) and row[11] == 1 and row[20] == pytest.approx(0.25) and row[21] == 0
    assert list(np.flatnonzero(page.labels[15])) == list(range(10, 20))


def test_shapes_beyond_the_border_are_cut_or_left_out() -> None:
    page = canvas()
    page.polygon([(-50, -50), (200, -50), (200, 200), (-50, 200)], WHITE, 1)
    assert page.pixels.min() == 1 and (page.labels == 1).all()
    page = canvas()
    page.ellipse((-40, 30), 10, 10, WHITE, 1)
    page.line((200, 10), (220, 90), 3, WHITE, 1)
    page.polygon([(10, 200), (20, 200), (15, 220)], WHITE, 1)
    page.polygon([(10, 10), (10.4, 10), (10.2, 10.4)], WHITE, 1)
    assert not page.pixels.any() and not page.labels.any()


def test_opacity_and_shade() -> None:
    page = canvas()
    page.pixels[:] = 1
    page.polygon([(10, 10), (30, 10), (30, 30), (10, 30)], rgb(0, 0, 0), None, 0.25)
    assert page.pixels[0, 20, 20] == pytest.approx(0.75) and not page.labels.any()
    page.shade((70, 40), 20, 10, 0.5)
    assert page.pixels[0, 40, 70] == pytest.approx(0.5, abs=0.02) and page.pixels[0, 40, 95] == 1


def test_rays_undo_what_the_camera_sees() -> None:
    for place in ((1.0, 0.0, 5.0), (-3.0, 2.5, 9.0), (0.2, 1.0, 40.0)):
        x, y = CAMERA.see(place)
        across, down = CAMERA.upright(np.array([[x]]), np.array([[y]]))
        assert across[0, 0] == pytest.approx(place[0] / place[2]) and down[0, 0] == pytest.approx((CAMERA.above - place[1]) / place[2])


def test_stripes_keep_their_mean_at_any_pixel_size() -> None:
    t = np.linspace(0, 40, 4001, dtype=np.float32)
    for width in (0.05, 0.7, 3.3):
        stripes = pulses(t, 0.3, width)
        assert stripes.min() >= -1e-4 and stripes.max() <= 1 + 1e-4
        assert stripes.mean() == pytest.approx(0.3, abs=0.01)
    assert np.ptp(pulses(t, 0.3, 10.0)) < 0.1 < np.ptp(pulses(t, 0.3, 0.05))


@pytest.mark.parametrize("cell", [1, 4, 32])
def test_noise_wraps_and_is_as_smooth_as_its_cells(cell: int) -> None:
    tile = noise(cell)
    assert tile.dtype == np.float32 and abs(tile.mean()) < 0.15 and np.abs(tile).max() <= 1
    assert np.abs(np.roll(tile, 1, 0) - tile).max() <= 2 / cell + 1e-5
    u, v = np.arange(-300, 300, dtype=np.float32)[None], np.arange(-20, 20, dtype=np.float32)[:, None]
    assert grain(cell, u, v).shape == (40, 600)


def test_dice_draw_what_philox_draws() -> None:
    expected = np.random.Generator(np.random.Philox(key=5)).random(3000)
    dice = Dice(5, 0)
    assert [dice.between(0, 1) for _ in range(3000)] == list(expected)
    assert Dice(5, 1).between(0, 1) != expected[0]
    dice = Dice(6, 0)
    assert {dice.count(2, 4) for _ in range(100)} == {2, 3, 4}


def test_colors_lie_in_their_ranges() -> None:
    dice = Dice(9, 0)
    drawn = np.stack([dice.color((0.2, 0.5), (0.4, 0.8)).ravel() for _ in range(500)])
    value, low = drawn.max(1), drawn.min(1)
    assert value.min() >= 0.4 - 1e-6 and value.max() <= 0.8 and (1 - low / value).min() >= 0.2 - 1e-6 and (1 - low / value).max() <= 0.5 + 1e-6
    red = dice.color((1, 1), (1, 1), (0, 0)).ravel()
    assert list(red) == [1, 0, 0]
