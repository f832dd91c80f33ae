"""The random resized box has the law of torchvision's RandomResizedCrop."""
from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from twinview.ops.crops import random_resized_box

DRAWS = 4000


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [((48, 64), (0.08, 1.0), (3 / 4, 4 / 3)), ((90, 30), (0.2, 0.6), (0.5, 2.0)), ((20, 200), (0.9, 1.0), (3 / 4, 4 / 3)), ((200, 20), (0.9, 1.0), (3 / 4, 4 / 3))],
)
def test_law(size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    """Kolmogorov-Smirnov on area, aspect and place, 4 000 boxes each; the last two sizes all but always end in the central crop."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    ours = np.array([random_resized_box(size, rng, scale, ratio) for _ in range(DRAWS)])
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(DRAWS)])  # top, left, height, width
    theirs = np.stack([theirs[:, 1], theirs[:, 0], theirs[:, 1] + theirs[:, 3], theirs[:, 0] + theirs[:, 2]], 1)
    for name, a, b in zip(("area", "aspect", "x0", "y0", "x1"), numbers(ours), numbers(theirs)):
        assert stats.ks_2samp(a, b).pvalue > 1e-3, name


def numbers(boxes: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], ...]:
    x0, y0, x1, y1 = boxes.T.astype(float)
    return (x1 - x0) * (y1 - y0), (x1 - x0) / (y1 - y0), x0, y0, x1


def test_boxes_lie_in_the_image() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        height, width = (int(n) for n in rng.integers(1, 40, 2))
        x0, y0, x1, y1 = random_resized_box((height, width), rng)
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def test_the_same_generator_gives_the_same_box() -> None:
    first, second = (random_resized_box((50, 70), np.random.default_rng(7)) for _ in range(2))
    assert first == second and all(type(n) is int for n in first)
