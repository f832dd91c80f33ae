"""Pictures show what they say: matched dots mark the same place of the source, whatever was mirrored."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from twinview import api
from twinview.analysis.figures import _cell_boxes, _matched, _spread, draw, views_sheet
from twinview.assembly import assemble
from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import read_image
from twinview.data.loading.views import ViewDataset
from twinview.errors import HookError
from twinview.model import LazyStep, Siamese
from twinview.recipe import Recipe, read
from twinview.values import Batch, Geometry, Progress
from twinview_multisiam.pictures import outline


@pytest.fixture
def recipe(photo_shards: str) -> Recipe:
    return read(table_of(photo_shards))


def table_of(photo_shards: str) -> dict[str, Any]:
    return {
        "views": {"use": "multisiam.iou_crops", "size": 64}, "encoder": {"use": "torchvision.resnet", "cells": "c3"}, "align": {"use": "multisiam.roi"},
        "loss": [{"use": "multisiam.clusters", "hidden": 8, "channels": 8}], "data": {"shards": photo_shards, "workers": 0},
        "optimizer": {"use": "sgd", "lr": 0.1}, "run": {"steps": 1, "batch_size": 2, "device": "cpu"},
    }


def model_and_batch(recipe: Recipe) -> tuple[Siamese, Batch]:
    shards, assembly = open_shards(recipe.data.shards), assemble(recipe)
    encoder = assembly.encoder()
    dims = assembly.dims(encoder, len(shards))
    return Siamese(assembly, dims, encoder).eval(), ViewDataset(recipe, dims, shards).collate([(0, i) for i in range(12)])[0]


def test_matched_cells_lie_at_the_same_place(recipe: Recipe) -> None:
    model, batch = model_and_batch(recipe)
    step = LazyStep(model, batch, Progress(0, 1, 0, 0.0), False)
    found = _matched(step, "")
    (online, target), weight = found.places, found.weight
    assert not found.learned
    assert bool(batch.geometry.flips.any()) and not bool(batch.geometry.flips.all()) and bool((weight > 0).all())
    i, j = step.pairs[0]
    inner = slice(2, -2)  # RoIAlign clamps at the maps' borders
    there = batch.geometry.to_source(online.flatten(1, 2), i).view_as(online)[:, inner, inner]
    here = batch.geometry.to_source(target.flatten(1, 2), j).view_as(target)[:, inner, inner]
    assert float((there - here).abs().max()) < 0.02


def test_the_sheet_has_a_row_an_image_and_shows_boxes_and_dots(recipe: Recipe) -> None:
    model, batch = model_and_batch(recipe)
    shards = open_shards(recipe.data.shards)
    sheet = views_sheet(model, batch, [read_image(shards, i) for i in range(3)], "a run, step 1")
    assert 3 * 208 < sheet.height < 3 * 208 + 250
    pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(sheet.height, sheet.width, 3)
    for color in ((255, 48, 48), (48, 160, 255)):  # a box of each view
        assert int((pixels == torch.tensor(color, dtype=torch.uint8)).all(-1).sum()) > 100
    assert _spread(7) == [0, 2, 3, 4, 6] and _spread(2) == [0, 1] and _spread(1) == [0]


def test_a_recipe_alone_gives_views_a_run_its_parts_too(recipe: Recipe, tmp_path: Path) -> None:
    assert set(draw(recipe, images=2)) == {"views"}


def test_a_part_that_fails_to_draw_stops_no_run(
    photo_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`twinview show` says what is wrong, and ends."""
    def fails(*_: object) -> None:
        raise ValueError("no pencil")

    monkeypatch.setattr("twinview_multisiam.clusters.cluster_sheet", fails)
    result = api.train(table_of(photo_shards), run=tmp_path / "run")
    said = capsys.readouterr().err
    assert result.step == 1 and "multisiam.clusters: pictures() raises ValueError: no pencil" in said and "the run goes on" in said
    assert (tmp_path / "run/pictures/views.png").is_file() and not (tmp_path / "run/pictures/clusters.png").exists()
    with pytest.raises(HookError, match="no pencil"):
        draw(read(table_of(photo_shards)), tmp_path / "run")


@pytest.mark.parametrize(("other", "frames"), [((0.5, 0.0, 1.0, 1.0), True), ((0.4999, 0.0, 1.0, 1.0), True), ((0.6, 0.0, 1.0, 1.0), False)])
def test_views_that_hardly_meet_are_framed_and_those_that_do_not_are_not(other: tuple[float, ...], frames: bool) -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5001, 1.0], other]])
    geometry = Geometry(boxes, torch.zeros(1, 2, dtype=torch.bool), torch.tensor([[64.0, 64.0]]), ((64, 64), (64, 64)), ((0, 1), (1, 0)))
    picture = Image.new("RGB", (64, 64))
    outline(picture, geometry, 0, 0)
    assert (picture.getbbox() is not None) == frames


def test_hidden_cells_are_hatched_and_a_learned_alignment_has_the_geometrys_dots(photo_shards: str) -> None:
    table: dict[str, Any] = {
        "views": {"use": "siameseim.crops", "size": 32}, "masks": {"use": "siameseim.blocks", "smallest": 2}, "align": {"use": "siameseim.relative", "depth": 1, "attention_heads": 2},
        "encoder": {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 48, "depth": 1, "heads": 3},
        "loss": [{"use": "siameseim.dense", "channels": 16, "projector_depth": 1, "attention_heads": 2}], "data": {"shards": photo_shards, "workers": 0},
        "optimizer": {"use": "adamw", "lr": 1e-4}, "run": {"steps": 1, "batch_size": 2},
    }  # fmt: skip
    recipe = read(table)
    model, batch = model_and_batch(recipe)
    hidden = batch.hidden[0]
    assert hidden is not None
    boxes = _cell_boxes(hidden[0], model.dims.grids[0], (200, 100))
    assert len(boxes) == int(hidden[0].sum()) and boxes[0][2] - boxes[0][0] == 50 and boxes[0][3] - boxes[0][1] == 25
    step = LazyStep(model, batch, Progress(0, 1, 0, 0.0), False)
    found = _matched(step, "")
    assert found.learned
    i, j = step.pairs[0]
    here, there = (batch.geometry.to_source(places.flatten(1, 2), view) for places, view in zip(found.places, (i, j)))
    assert float((here - there).abs().max()) < 1e-5
    shards = open_shards(recipe.data.shards)
    dark, plain = (
        float(torch.frombuffer(bytearray(views_sheet(model, b, [read_image(shards, 0)]).tobytes()), dtype=torch.uint8).float().mean())
        for b in (batch, batch._replace(hidden=(None, None)))
    )
    assert dark < plain - 1
