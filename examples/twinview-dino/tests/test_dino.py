"""Both parts keep what twinview promises of one; the recipes assemble."""
from __future__ import annotations

from collections.abc import Callable

import pytest

import twinview
from twinview_dino import Distill


@pytest.mark.twinview("dino", options={
    "multi_crop": {"size": 32, "local": 2, "local_size": 16},
    "distill": {"hidden": 16, "bottleneck": 8, "outputs": 24, "warmup_epochs": 2},
}, recipes={"distill": {"views": {"use": "dino.multi_crop", "size": 32, "local": 1, "local_size": 16}}})
def test_conforms(conform: Callable[[], None]) -> None:
    conform()


@pytest.mark.parametrize("name", ["imagenet_vits16", "quickstart"])
def test_a_recipe_assembles(name: str) -> None:
    assert twinview.check(f"dino/{name}", "evaluate=[]").parts


def test_the_temperature_rises_by_the_epoch() -> None:
    part = Distill(target_temperature=0.07, warmup_temperature=0.04, warmup_epochs=4)
    assert [round(part.sharpness(epoch), 6) for epoch in range(6)] == [0.04, 0.05, 0.06, 0.07, 0.07, 0.07]
    assert Distill().sharpness(0) == 0.04
