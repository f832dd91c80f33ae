"""Views that take another's draws, and views that are cut out of another's finished picture (DetCo's patches)."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from twinview.assembly import assemble
from twinview.data.dataset.open import open_shards
from twinview.data.loading.loader import training_batches
from twinview.data.loading.views import ViewDataset
from twinview.errors import PluginError, RecipeError
from twinview.model import make_model
from twinview.recipe import read
from twinview.values import Batch, cell_centers

METHOD = '''
import torch
from twinview.hooks import hookimpl, part
from twinview.values import Geometry


@part
class Views:
    """A crop; four patches of 16 pixels out of it, the last mirrored once more; a crop with the draws of the first; a crop of its own."""

    draws: list[int] = [0, 1, 2, 3, 4, 0, 6]
    cut_from: list[int] = [0, 0, 0, 0, 0, 5, 6]
    late: bool = False  # the second image has others

    @hookimpl
    def sample_views(self, size, rng):
        x, y = rng.random(2) * 0.4
        crop, flip = [x, y, x + 0.6, y + 0.6], bool(rng.random() < 0.5)
        boxes, flips = [crop], [flip]
        for patch in range(4):
            left, top = rng.integers(0, 33, 2) / 48  # of the crop's own picture
            frame = torch.tensor([left, top, left + 16 / 48, top + 16 / 48])
            if flip:
                frame[[0, 2]] = 1 - frame[[2, 0]]
            boxes.append((torch.tensor([x, y, x, y]) + 0.6 * frame).tolist())
            flips.append(flip != (patch == 3))
        boxes += [[0.0, 0.0, 0.5, 0.5], [0.2, 0.2, 0.9, 0.9]]
        sizes = ((48, 48), (16, 16), (16, 16), (16, 16), (16, 16), (24, 24), (24, 24))
        cut_from = tuple(self.cut_from) if not self.late or size == (256, 256) else ()
        return Geometry(torch.tensor(boxes), torch.tensor([*flips, False, True]), torch.tensor(size), sizes, ((0, 5),), {}, tuple(self.draws), cut_from)


@part
class Colors:
    """Contrast about the picture's own mean: a patch that had photometry by itself would come out another."""

    @hookimpl
    def draw_augment(self, view, size, rng):
        return {"factor": torch.tensor(float(rng.uniform(0.2, 0.6))), "view": torch.tensor(view)}

    @hookimpl
    def apply_augment(self, pixels, params):
        mean = pixels.float().mean((1, 2, 3), keepdim=True)
        return (mean + (pixels - mean) * params["factor"].view(-1, 1, 1, 1)).round().clamp(0, 255).byte()


@hookimpl
def parts():
    return {"views": Views, "colors": Colors}
'''


@pytest.fixture
def table(toy: dict[str, Any], install: Callable[..., None], photo_shards: str) -> dict[str, Any]:
    install("shared", METHOD)
    return {
        **toy, "views": {"use": "shared.views"}, "augment": {"use": "shared.colors"}, "data": {"shards": photo_shards, "workers": 0},
        "run": {**toy["run"], "device": "cpu"},
    }


def data_of(table: dict[str, Any]) -> ViewDataset:
    recipe = read(table)
    assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
    return ViewDataset(recipe, assembly.dims(assembly.encoder(), len(shards), 0), shards)


def batch_of(table: dict[str, Any]) -> Batch:
    return data_of(table).collate([(0, i) for i in range(6)])[0]


def test_a_patch_is_what_its_view_shows_after_the_photometry(table: dict[str, Any]) -> None:
    batch = batch_of(table)
    whole = batch.images[0]
    assert {bool(flip) for flip in batch.geometry.flips[:, 0]} == {True, False}
    for view in (1, 2, 3, 4):
        patch = batch.images[view].flip(-1) if view == 4 else batch.images[view]
        for b in range(6):
            corner = batch.geometry.to_view(batch.geometry.boxes[:, view].view(6, 2, 2), 0)[b].amin(0) * 48
            x, y = (round(float(c)) for c in corner)
            assert torch.equal(patch[b], whole[b, :, y : y + 16, x : x + 16]) and (corner - torch.tensor([x, y])).abs().max() < 1e-3
    assert torch.equal(batch_of({**table, "data": {**table["data"], "workers": 0}}).images[4], batch.images[4])


def test_geometry_says_where_a_patch_lies_in_the_source(table: dict[str, Any]) -> None:
    """A patch's places, through its own box and flip, are the places of the same pixels of the view that it is cut from."""
    geometry = batch_of(table).geometry
    own = geometry.to_source(cell_centers((16, 16)).expand(6, -1, -1), 4)
    through = geometry.to_view(own, 0) * 48
    assert torch.allclose(through - through.floor(), torch.full_like(through, 0.5), atol=1e-3)  # the middles of its pixels


def test_a_view_takes_the_draws_of_another(table: dict[str, Any]) -> None:
    item = data_of(table)[(0, 3)]
    assert item.augment is not None
    assert [int(draw["view"]) for draw in item.augment] == [0, 1, 2, 3, 4, 0, 6]
    assert item.augment[5]["factor"] == item.augment[0]["factor"] != item.augment[6]["factor"]


def test_workers_change_nothing_and_it_trains(table: dict[str, Any]) -> None:
    recipes = [read({**table, "data": {**table["data"], "workers": workers}}) for workers in (0, 1)]
    found = []
    for recipe in recipes:
        assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
        model = make_model(assembly, len(shards))
        batches = training_batches(recipe, model.dims, shards, rank=0, world=1, steps=1)
        found.append(next(iter(batches)))
        batches.close()
    assert all(torch.equal(a, b) for a, b in zip(found[0].images, found[1].images, strict=True))
    from twinview.values import Progress

    assert model(found[0], Progress(0, 1, 0, 0.0)).loss.requires_grad


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"draws": [0, 1]}, PluginError, "gives draws = (0, 1). Give for each of the 7 views itself, or a view that has itself there."),
        ({"cut_from": [0, 0, 1, 3, 4, 5, 6]}, PluginError, "gives cut_from = (0, 0, 1, 3, 4, 5, 6). Give for each of the 7 views itself"),
        ({"cut_from": [0, 9, 2, 3, 4, 5, 6]}, PluginError, "Give for each of the 7 views itself"),
    ],
    ids=str,
)
def test_views_of_views_of_views_are_refused(table: dict[str, Any], change: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as found:
        data_of({**table, "views": {"use": "shared.views", **change}})
    assert str(found.value).startswith("[views] shared.views: ") and said in str(found.value)


def test_what_changes_from_image_to_image_and_photometry_on_the_device_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match=r"^\[views\] shared\.views: gives other sizes, pairs, draws, cut_from or sets for an image of 56x80"):
        batch_of({**table, "views": {"use": "shared.views", "late": True}})
    with pytest.raises(RecipeError, match=r'augment_on: \[views\] shared\.views cuts views out of others .* Write augment_on = "worker"\.$'):
        data_of({**table, "data": {**table["data"], "augment_on": "device"}})
