from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from twinview.ops.maps import hide_cells, hide_pixels, resize_map, unflip, visible_cells


def test_unflip_mirrors_only_what_was_mirrored() -> None:
    maps = torch.arange(12.0).view(2, 1, 2, 3)
    found = unflip(maps, torch.tensor([True, False]))
    assert found[0, 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert torch.equal(found[1], maps[1])
    assert torch.equal(unflip(found, torch.tensor([True, False])), maps)


@pytest.mark.parametrize("grid", [(4, 6), (2, 3), (8, 12), (3, 4), (2, 9)], ids=str)
def test_a_ramp_over_the_frame_stays_the_same_ramp(grid: tuple[int, int]) -> None:
    def ramp(width: int) -> torch.Tensor:
        return (torch.arange(width) + 0.5) / width

    found = resize_map(ramp(6).expand(1, 1, 4, 6), grid)
    assert found.shape == (1, 1, *grid)
    inside = slice(None) if grid[1] <= 6 else slice(2, -2)  # a finer map repeats the outermost cells
    torch.testing.assert_close(found[0, 0, :, inside], ramp(grid[1])[inside].expand(grid[0], -1), atol=0.09 if 6 % grid[1] and grid[1] < 6 else 1e-6, rtol=0)


def test_a_coarser_map_holds_the_means() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize_map(maps, (2, 2))[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert resize_map(maps, (4, 4)) is maps


def test_hidden_cells_lose_their_pixels_and_their_features_and_no_others() -> None:
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[0, 1] = hidden[1, 5] = True  # of 2 x 3 cells; the last row and column of cells reach over the border
    images = hide_pixels(torch.ones(2, 3, 7, 10), hidden, 4)
    expected = torch.ones(2, 3, 7, 10)
    expected[0, :, :4, 4:8] = expected[1, :, 4:, 8:] = 0
    assert torch.equal(images, expected)
    assert hide_cells(torch.ones(2, 1, 2, 3), hidden).flatten(1).tolist() == [[1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize(("own", "other"), [(7, 49), (10, 60), (5, 35), (4, 25), (6, 3), (9, 5)])
def test_cells_are_visible_where_nothing_hidden_reaches_them(own: int, other: int) -> None:
    """Weights of a resize sum to one but nearly: a cell that is wholly seen is seen."""
    hidden = torch.zeros(1, own, own, dtype=torch.bool)
    hidden[0, 0, 0] = True
    cells = SimpleNamespace(at=lambda name: torch.zeros(1, 1, own, own))
    step: Any = SimpleNamespace(hidden=(hidden.flatten(1),), online=(cells,))
    seen = visible_cells(step, 0, torch.zeros(1, 2, other, other))[0]
    reach = -(-other // own) * 2
    assert seen[reach:].all() and seen[:, reach:].all() and not seen[0, 0]
