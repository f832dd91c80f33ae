"""A run assembles its recipe once and makes its model once; the pictures at its end are those of the model that it trained."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from processes import Processes
from torch import nn

from twinview import api
from twinview.analysis.figures import draw
from twinview.assembly import Assembly
from twinview.model import Siamese
from twinview.recipe import read


@pytest.fixture
def recipe(photo_shards: str) -> dict[str, Any]:
    return {
        "views": {"use": "multisiam.iou_crops", "size": 32},
        "encoder": {"use": "torchvision.resnet", "name": "resnet18", "cells": "c3"},
        "align": {"use": "multisiam.roi"},
        "loss": [{"use": "multisiam.clusters", "hidden": 8, "channels": 8}],
        "data": {"shards": photo_shards, "workers": 1, "mean": [0.5] * 3, "std": "shards"},
        "optimizer": {"use": "sgd", "lr": 0.05},
        "run": {"steps": 2, "batch_size": 4, "checkpoint_every": 1, "precision": "auto", "device": "cpu"},
    }


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is made from here on."""
    found: list[str] = []
    for cls in (Assembly, Siamese):
        def counted(self: Any, *args: Any, real: Any = cls.__init__, name: str = cls.__name__) -> None:
            found.append(name)
            real(self, *args)

        monkeypatch.setattr(cls, "__init__", counted)
    return found


def test_a_run_and_its_resume(recipe: dict[str, Any], tmp_path: Path, made: list[str]) -> None:
    api.train(recipe, run=tmp_path)
    assert made == ["Assembly", "Siamese"]
    made.clear()
    api.train(recipe, "run.keep=3", run=tmp_path, resume=True)
    assert made == ["Assembly", "Siamese"]
    made.clear()
    drawn = draw(read(tmp_path / "recipe.toml"), tmp_path)
    assert made == ["Assembly", "Siamese"] and set(drawn) == {"views", "clusters"}
    for name, picture in drawn.items():
        assert (tmp_path / "pictures" / f"{name}.png").stat().st_size > 0
        assert picture.size[0] > 100


def test_pictures_are_of_the_trained_model(recipe: dict[str, Any], tmp_path: Path) -> None:
    from PIL import Image, ImageChops

    api.train(recipe, run=tmp_path)
    for name, picture in draw(read(tmp_path / "recipe.toml"), tmp_path).items():
        with Image.open(tmp_path / "pictures" / f"{name}.png") as saved:
            below = (0, 40, *picture.size)  # the title, which names the step or the run's end
            assert ImageChops.difference(saved.convert("RGB").crop(below), picture.convert("RGB").crop(below)).getbbox() is None, name


def test_two_ranks_draw_together(toy: dict[str, Any], install: Any, photo_shards: str, tmp_path: Path, processes: Processes) -> None:
    """A part may ask the other ranks while it draws."""
    install("drawn", """
        import torch
        from twinview.hooks import hookimpl, part
        from twinview.ops.ranks import summed
        @part
        class Sum:
            @hookimpl
            def pictures(self, step):
                return {"sum": torch.full((3, 8, 8), int(summed(torch.ones(1))), dtype=torch.uint8)}
        @hookimpl
        def parts():
            return {"sum": Sum}
    """)
    table = {**toy, "data": {"shards": photo_shards, "workers": 0}, "extra": [{"use": "drawn.sum"}]}
    table["run"] = {"steps": 1, "batch_size": 4, "device": "cpu"}
    (tmp_path / "two.toml").write_text(tomli_w.dumps(table))
    done = processes.run("train", str(tmp_path / "two.toml"), "--run", str(tmp_path / "run"), "--ranks", "2")
    assert done.returncode == 0, done.stderr
    from PIL import Image

    with Image.open(tmp_path / "run" / "pictures" / "sum.png") as picture:
        assert (2, 2, 2) in {color for _, color in picture.convert("RGB").getcolors(1 << 20) or ()}, "below the title"


def test_an_encoder_without_its_weights_is_the_random_start(recipe: dict[str, Any], tmp_path: Path) -> None:
    from twinview.assembly import assemble

    plain = assemble(read(recipe)).encoder()
    with torch.no_grad():
        shifted = {name: value + 1 for name, value in plain.state_dict().items()}
    torch.save(shifted, tmp_path / "start.pt")
    assembly = assemble(read({**recipe, "encoder": {**recipe["encoder"], "weights": str(tmp_path / "start.pt")}}))
    loaded, random = assembly.encoder(), assembly.encoder(random=True)

    def first(module: nn.Module) -> torch.Tensor:
        return next(module.parameters())

    assert torch.equal(first(random), first(plain)) and not torch.equal(first(loaded), first(plain))
