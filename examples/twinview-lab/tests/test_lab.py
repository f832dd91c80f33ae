"""Each part keeps what twinview promises of one, and the recipe assembles."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import twinview
from twinview_lab import Gamma


@pytest.mark.twinview("lab", options={"conv_mixer": {"width": 16, "depth": 2, "kernel": 3}, "ramp": {"share": 0.5}, "sphere": {"batches": 2}})
def test_conforms(conform: Callable[[], None]) -> None:
    conform()


def test_the_recipe_assembles() -> None:
    assert twinview.check("lab/quickstart").parts


def test_gamma_of_known_pixels() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    found = Gamma().apply_augment(pixels, {"gamma": torch.tensor([2.0]), "gain": torch.tensor([1.0])})
    assert found.flatten().tolist() == [0, 10, 255]  # 0.2 ** 2 * 255 = 10.2
