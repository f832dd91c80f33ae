"""Whole images for evaluations, and an epoch's own batches."""
from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twinview.assembly import assemble
from twinview.data.dataset.open import open_shards
from twinview.data.loading.factory import Factory
from twinview.data.loading.loader import training_batches
from twinview.errors import DataError
from twinview.recipe import read
from twinview.values import DataFactory

Write = Callable[[str, Mapping[str, bytes]], Path]


def factory(tables: dict[str, Any], *overrides: str, rank: int = 0, world: int = 1) -> Factory:
    recipe = read(tables, overrides)
    assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
    return Factory(recipe, assembly.dims(assembly.encoder(), len(shards), shards.classes), shards, rank, world)


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_images_in_order(tables: dict[str, Any], shards: list[str], workers: int) -> None:
    offers: DataFactory = factory(tables, f"data.workers={workers}")
    found = list(offers.plain(size=(20, 30), labels=("class", "map"), batch_size=25))
    assert [len(b.keys) for b in found] == [25, 25, 11] and [k for b in found for k in b.keys] == [f"{n:03}" for n in range(61)]
    assert torch.cat([b.ids for b in found]).tolist() == list(range(61))
    assert torch.cat([b.labels["class"] for b in found]).tolist() == [n % 5 for n in range(61)]
    maps = torch.cat([b.labels["map"] for b in found])
    assert maps.dtype == torch.int64 and maps.shape == (61, 20, 30) and maps[:, 5, 5].tolist() == list(range(61))
    pixels = np.array(Image.open(io.BytesIO(open_shards(shards).read(0).fields["png"])))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1)
    assert torch.allclose(found[0].images[0], expected, atol=1e-5) and found[0].images.dtype == torch.float32


def test_sizes_and_mean_are_as_asked(tables: dict[str, Any]) -> None:
    found = next(factory(tables, "data.mean=[0,0,0]", "data.std=[1,1,1]").plain(size=(7, 9), labels=("map",), batch_size=3))
    assert found.images.shape == (3, 3, 7, 9) and found.labels["map"].shape == (3, 7, 9) and found.images.min() >= 0 and found.images.max() <= 1


@pytest.mark.parametrize(("size", "box"), [((20, 20), (0, 20, 5, 25)), ((5, 15), (5, 15, 0, 30)), ((40, 60), (0, 20, 0, 30))])
def test_a_central_crop_keeps_the_shape_of_things(tables: dict[str, Any], size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    offers = factory(tables)
    whole = next(offers.plain(size=(20, 30), labels=("map",), batch_size=2))
    found = next(offers.plain(size=size, labels=("map",), batch_size=2, crop=True))
    y0, y1, x0, x1 = box
    assert found.images.shape[2:] == found.labels["map"].shape[1:] == size
    if size == (y1 - y0, x1 - x0):
        assert torch.equal(found.images, whole.images[..., y0:y1, x0:x1]) and torch.equal(found.labels["map"], whole.labels["map"][..., y0:y1, x0:x1])


def test_ranks_share_the_images(tables: dict[str, Any]) -> None:
    keys = [[k for b in factory(tables, rank=rank, world=3).plain(size=(4, 4)) for k in b.keys] for rank in range(3)]
    assert [len(k) for k in keys] == [21, 20, 20] and sorted(k for share in keys for k in share) == [f"{n:03}" for n in range(61)]
    few = [list(factory(tables, rank=rank, world=70).plain(size=(4, 4))) for rank in (0, 69)]
    assert [len(b) for b in few] == [1, 0]


def test_other_shards(tables: dict[str, Any], shards: list[str], write: Write) -> None:
    offers = factory(tables)
    found = list(offers.plain(shards[2], size=(4, 4), labels=("class",)))
    assert len(found) == 1 and found[0].keys == tuple(f"{n:03}" for n in range(40, 61)) and found[0].ids[0] == 0
    assert len(list(offers.plain(shards[:2], size=(4, 4), batch_size=40))) == 1
    with pytest.raises(DataError, match="there is no such shard"):
        offers.plain("nowhere.tar", size=(4, 4))


def test_labels_that_are_not_there(tables: dict[str, Any], write: Write, shards: list[str]) -> None:
    data = open_shards(shards).read(0).fields
    small = io.BytesIO()
    Image.fromarray(np.zeros((10, 15), np.uint8)).save(small, "PNG")
    path = str(write("x.tar", {"a.png": data["png"], "b.png": data["png"], "b.seg.png": small.getvalue()}))
    offers = factory(tables)
    with pytest.raises(DataError, match=re.escape("there are no labels 'maps'. Did you mean 'map'?")):
        offers.plain(path, size=(4, 4), labels=("maps",))
    for label, said in (("class", f"{path}, sample 'a': has no class"), ("map", f"{path}, sample 'a': has no label map")):
        with pytest.raises(DataError, match=re.escape(said)) as caught:
            list(offers.plain(path, size=(4, 4), labels=(label,)))
        assert caught.value.shards == path, "which set it is of"
    with pytest.raises(DataError) as caught:
        list(offers.plain(size=(4, 4), labels=("objects",)))
    assert caught.value.shards == "", "the run's own"
    for ask in (offers.require, offers.class_names):
        with pytest.raises(DataError, match="there is no such shard") as caught:
            ask(["nowhere.tar"])
        assert caught.value.shards == ["nowhere.tar"]
    path = str(write("y.tar", {"b.png": data["png"], "b.seg.png": small.getvalue()}))
    with pytest.raises(DataError, match=re.escape("sample 'b': its label map is (10, 15) pixels (height, width), its image (20, 30).")):
        list(offers.plain(path, size=(4, 4), labels=("map",)))


def test_bad_images_are_left_out_up_to_the_limit(tables: dict[str, Any], write: Write, shards: list[str]) -> None:
    data = open_shards(shards).read(0).fields
    path = str(write("x.tar", {f"{n}.{field}": b"broken" if n == 1 and field == "png" else data[field] for n in range(3) for field in ("png", "cls")}))
    found = list(factory(tables, "data.bad_samples=1").plain(path, size=(4, 4), labels=("class",), batch_size=1))
    assert [b.keys for b in found] == [("0",), ("2",)]
    with pytest.raises(DataError, match=r"sample '1': is no image"):
        list(factory(tables).plain(path, size=(4, 4)))


def test_views_are_the_epochs_own(tables: dict[str, Any]) -> None:
    offers = factory(tables, "run.accumulation=2", rank=1, world=2)
    found = list(offers.views(1))
    trained = list(training_batches(offers.recipe, offers.dims, offers.shards, rank=1, world=2, start=2, steps=2))
    assert len(found) == 4 and all(b.epoch == 1 for b in found)
    assert [b.keys for b in found] == [b.keys for b in trained]
    assert all(torch.equal(a.images[0], b.images[0]) and torch.equal(a.geometry.boxes, b.geometry.boxes) for a, b in zip(found, trained))
