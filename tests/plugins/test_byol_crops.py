"""byol.crops: independent boxes and flips, every ordered pair."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from twinview.values import Geometry
from twinview_byol.crops import Crops


def draws(n: int, **options: Any) -> list[Geometry]:
    rng = np.random.default_rng(0)
    part = Crops(**options)
    return [part.sample_views((120, 160), rng) for _ in range(n)]


def test_geometry_of_two_views() -> None:
    g = draws(1, size=96)[0]
    assert g.sizes == ((96, 96), (96, 96)) and g.pairs == ((0, 1), (1, 0)) and g.source.tolist() == [120, 160]
    assert g.boxes.shape == (2, 4) and g.boxes.dtype == torch.float32 and g.flips.dtype == torch.bool
    pixels = g.boxes * torch.tensor([160, 120, 160, 120])
    assert torch.allclose(pixels, pixels.round(), atol=1e-4) and (g.boxes >= 0).all() and (g.boxes <= 1).all()


def test_more_views_are_all_paired() -> None:
    g = draws(1, views=3)[0]
    assert g.boxes.shape == (3, 4) and g.flips.shape == (3,) and len(g.sizes) == 3
    assert g.pairs == ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))


def test_views_and_flips_are_independent() -> None:
    many = draws(3000)
    boxes, flips = torch.stack([g.boxes for g in many]), torch.stack([g.flips for g in many])
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    assert abs(float(stats.spearmanr(area[:, 0], area[:, 1]).statistic)) < 0.06
    assert stats.ks_2samp(area[:, 0], area[:, 1]).pvalue > 1e-3
    for count in torch.bincount(flips[:, 0] * 2 + flips[:, 1].long(), minlength=4):
        assert abs(count / 3000 - 0.25) < 0.03  # four standard deviations
    assert not torch.stack([g.flips for g in draws(50, flip=0.0)]).any() and torch.stack([g.flips for g in draws(50, flip=1.0)]).all()


def test_scale_bounds_the_area() -> None:
    area = torch.stack([(g.boxes[:, 2:] - g.boxes[:, :2]).prod(-1) for g in draws(500, scale=(0.3, 0.4))])
    assert float(area.min()) > 0.29 and float(area.max()) < 0.41


@pytest.mark.parametrize("options", [{"scale": (0.5, 0.2)}, {"scale": (0.0, 1.0)}, {"scale": (0.5, 1.5)}, {"ratio": (2.0, 1.0)}, {"views": 0}, {"size": 0}, {"flip": 1.2}])
def test_impossible_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Crops(**options)
