"""What is cut is what Geometry says, and every draw is one of the sample alone."""
from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from twinview.assembly import assemble
from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import BadSample
from twinview.data.loading.cutting import cut, on_pixels
from twinview.data.loading.item import Item
from twinview.data.loading.views import BadSamples, ViewDataset
from twinview.data.rng import key_hash
from twinview.errors import DataError, PluginError
from twinview.recipe import read
from twinview.values import Geometry, cell_centers

Write = Callable[[str, Mapping[str, bytes]], Path]
unit = st.floats(0, 1, width=32)


def make(tables: dict[str, Any], overrides: tuple[str, ...] = ()) -> ViewDataset:
    recipe = read(tables, overrides)
    assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
    return ViewDataset(recipe, assembly.dims(assembly.encoder(), len(shards), shards.classes), shards)


def same(one: Item, other: Item) -> bool:
    return pickle.dumps(_plain(one)) == pickle.dumps(_plain(other))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 255), st.integers(20, 255), unit, unit, st.floats(0.05, 1), st.floats(0.05, 1), st.booleans(), st.integers(8, 64), st.integers(8, 64))
def test_pixels_lie_where_geometry_says(
    height: int, width: int, x: float, y: float, w: float, h: float, flip: bool, rows: int, columns: int
) -> None:
    """Red is the source's x, green its y: each pixel of a view must hold its own place, to a pixel's rounding, flips included."""
    xs, ys = torch.arange(width).expand(height, width), torch.arange(height)[:, None].expand(height, width)
    source = torch.stack([xs, ys, torch.zeros_like(xs)]).to(torch.uint8)
    box = torch.tensor([[x * (1 - w), y * (1 - h), x * (1 - w) + w, y * (1 - h) + h]])
    geometry, pixels = on_pixels(Geometry(box, torch.tensor([flip]), torch.tensor([0, 0]), ((rows, columns),), ()), height, width)
    view = cut(source, pixels[0], (rows, columns), flip)
    assert view.shape == (3, rows, columns) and geometry.source.tolist() == [height, width]

    places = geometry.to_source(cell_centers((rows, columns)), 0) * torch.tensor([width, height]) - 0.5
    found = view[:2].flatten(1).T.float()
    x0, y0, x1, y1 = pixels[0]
    step = torch.tensor([(x1 - x0) / columns, (y1 - y0) / rows])  # source pixels a view pixel
    inner = ((places >= torch.tensor([x0, y0]) + step) & (places <= torch.tensor([x1, y1]) - 1 - step)).all(1)
    assert ((found - places)[inner].abs() <= 0.51).all(), "the rounding of a byte"
    assert ((found - places).abs() <= 0.51 + step.clamp(min=1) / 2).all(), "at the edges the picture ends"


@pytest.mark.parametrize("flip", [False, True])
def test_a_view_is_the_same_however_its_image_lies_in_memory(flip: bool) -> None:
    """Decoders interleave the channels of a pixel; resizing has a way of its own for that."""
    planes = torch.randint(0, 256, (3, 60, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    interleaved = planes.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for box, size in (([0, 0, 90, 60], (32, 48)), ([11, 7, 64, 50], (96, 96)), ([3, 5, 4, 6], (8, 8)), ([10, 10, 42, 42], (32, 32))):
        assert torch.equal(cut(interleaved, box, size, flip), cut(planes, box, size, flip))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.lists(st.tuples(unit, unit, unit, unit), min_size=1, max_size=4))
def test_boxes_are_whole_pixels_and_never_empty(height: int, width: int, raw: list[tuple[float, float, float, float]]) -> None:
    boxes = torch.tensor([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in raw])
    flips = torch.zeros(len(raw), dtype=torch.bool)
    geometry, pixels = on_pixels(Geometry(boxes, flips, torch.tensor([0, 0]), ((4, 4),) * len(raw), ()), height, width)
    for (x0, y0, x1, y1), box, given_ in zip(pixels, geometry.boxes, boxes):
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert torch.allclose(box * torch.tensor([width, height, width, height]), torch.tensor([x0, y0, x1, y1]).float(), atol=1e-3)
        assert ((box - given_).abs() * torch.tensor([width, height, width, height]) <= 1.501).all(), "half a pixel, and one where it was empty"
    again, twice = on_pixels(geometry, height, width)
    assert twice == pixels and torch.equal(again.boxes, geometry.boxes)


def test_an_item_is_what_the_parts_made_of_the_sample(tables: dict[str, Any]) -> None:
    views = make(tables)
    item = views[(3, 17)]
    assert (item.key, item.id, item.seed, item.epoch) == ("017", 17, key_hash("017"), 3)
    assert [tuple(i.shape) for i in item.images] == [(3, 12, 16), (3, 8, 8), (3, 10, 15)] and all(i.dtype == torch.uint8 for i in item.images)
    assert item.geometry.source.tolist() == [20, 30] and item.geometry.boxes[2].tolist() == [0, 0, 1, 1]
    assert item.hidden[0] is not None and item.hidden[0].sum() == 1 and item.hidden[1:] == (None, None)
    assert item.labels["class"].item() == 17 % 5 and item.augment is not None and len(item.augment) == 3 and item.bad == ()


def test_draws_are_of_the_sample_epoch_and_seed(tables: dict[str, Any]) -> None:
    views, again = make(tables), make(tables)
    items = {place: views[place] for place in [(0, 5), (0, 6), (1, 5)]}
    assert all(same(again[place], items[place]) for place in reversed(items))
    assert same(pickle.loads(pickle.dumps(views))[(0, 5)], items[(0, 5)]), "in a process of its own"
    boxes = [item.geometry.boxes.tolist() for item in items.values()] + [make(tables, ("run.seed=6",))[(0, 5)].geometry.boxes.tolist()]
    assert len({str(b) for b in boxes}) == 4
    alone = make({k: v for k, v in tables.items() if k not in ("augment", "masks")})[(0, 5)]
    assert torch.equal(alone.geometry.boxes, items[(0, 5)].geometry.boxes), "other parts do not move the views"


def test_photometry_in_the_worker_or_later_is_the_same(tables: dict[str, Any]) -> None:
    early, late = make(tables), make(tables, ("data.augment_on=device",))
    places = [(0, n) for n in range(6)]
    (done, _), (raw, _) = early.collate(places), late.collate(places)
    assert done.augment is None and raw.augment is not None and raw.augment[1]["add"].shape == (6,)
    apply = assemble(read(tables)).calls.apply_augment
    for v in range(3):
        assert torch.equal(apply(pixels=raw.images[v], params=raw.augment[v]), done.images[v]) and not torch.equal(raw.images[v], done.images[v])


def test_a_batch_stacks_its_items(tables: dict[str, Any]) -> None:
    views = make(tables)
    places = [(2, n) for n in (4, 40, 13)]
    batch, bad = views.collate(places)
    items = [views[place] for place in places]
    apply = assemble(read(tables)).calls.apply_augment
    assert batch.keys == ("004", "040", "013") and batch.ids.tolist() == [4, 40, 13] and batch.epoch == 2 and bad == ()
    assert batch.seeds.tolist() == [key_hash(key) for key in batch.keys] and batch.labels["class"].tolist() == [4, 0, 3]
    assert batch.geometry.boxes.shape == (3, 3, 4) and batch.geometry.flips.shape == (3, 3) and batch.geometry.source.tolist() == [[20, 30]] * 3
    assert batch.geometry.sizes == items[0].geometry.sizes and batch.geometry.pairs == ((0, 1), (1, 0))
    assert batch.geometry.notes["iou"].shape == (3,)
    hidden = batch.hidden[0]
    assert hidden is not None and hidden.shape == (3, 4) and batch.hidden[1:] == (None, None)
    for b, item in enumerate(items):
        for v, params in enumerate(item.augment or ()):
            alone = apply(pixels=item.images[v][None], params={name: value[None] for name, value in params.items()})
            assert torch.equal(batch.images[v][b], alone[0]) and batch.images[v].is_contiguous()
        assert torch.equal(hidden[b], item.hidden[0]) if item.hidden[0] is not None else False


def test_a_sampler_that_changes_its_sizes_is_named(tables: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match=re.escape("[views] random.sizes: gives other sizes, pairs, draws, cut_from or sets for an image of 20x30 than for the first.")):
        make({**{k: v for k, v in tables.items() if k != "masks"}, "views": {"use": "random.sizes"}})[(0, 0)]


# ---- bad samples
def broken(tables: dict[str, Any], write: Write, numbers: set[int], limit: int) -> ViewDataset:
    """The same 61 samples, some of which hold no picture."""
    files = {}
    for n in range(61):
        data = io.BytesIO()
        Image.fromarray(np.full((20, 30, 3), n, np.uint8)).save(data, "PNG")
        files[f"{n:03}.png"] = b"broken" if n in numbers else data.getvalue()
    path = write("broken.tar", files)
    return make({**tables, "data": {**tables["data"], "shards": str(path), "bad_samples": limit}})


def test_a_bad_sample_stops_the_run_unless_the_recipe_lets_it_pass(tables: dict[str, Any], write: Write) -> None:
    views = broken(tables, write, {9}, 0)
    said = f"{views.shards.path(9)}, sample '009': is no image; it begins with b'broken'. [data] bad_samples lets 0 pass; raise it"
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        views[(0, 9)]
    assert "\n" not in str(caught.value) and views[(0, 8)].id == 8


def test_another_sample_takes_its_place_the_same_everywhere(tables: dict[str, Any], write: Write) -> None:
    views = broken(tables, write, {9, 30, 31}, 3)
    item, again = views[(0, 9)], pickle.loads(pickle.dumps(views))[(0, 9)]
    assert item.id not in {9, 30, 31} and item.bad[0].index == 9
    assert same(item._replace(bad=()), again._replace(bad=()))
    own, other = views[(0, item.id)], views[(0, 30)]
    assert not torch.equal(item.geometry.boxes, own.geometry.boxes) and item.seed != own.seed, "not the views that the epoch has of it anyway"
    assert other.id != item.id or not torch.equal(other.geometry.boxes, item.geometry.boxes)
    assert len({views[(epoch, 9)].id for epoch in range(8)}) > 1, "not the same one in every epoch"


def test_a_set_of_bad_samples_ends(tables: dict[str, Any], write: Write) -> None:
    views = broken(tables, write, set(range(61)), 4)
    with pytest.raises(DataError, match=r"bad_samples lets 4 pass, and this is one more\."):
        views[(0, 9)]


def test_bad_samples_are_counted_once_each(caplog: pytest.LogCaptureFixture) -> None:
    bad = [BadSample(i, f"x.tar, sample '{i}'", "is no image") for i in range(3)]
    count = BadSamples(2)
    count.add(bad[:2])
    count.add(bad[:1])
    assert [r.getMessage() for r in caplog.records] == [
        f"x.tar, sample '{i}': is no image. Another sample takes its place ({i + 1} of 2)." for i in range(2)
    ]
    with pytest.raises(DataError, match=re.escape("x.tar, sample '2': is no image. [data] bad_samples lets 2 pass, and this is one more.")):
        count.add(bad)


def test_dims_are_numbers(tables: dict[str, Any]) -> None:
    views = make(tables)
    assert attrs.evolve(views.dims) == pickle.loads(pickle.dumps(views.dims))


def test_frozen_draws_are_those_of_the_first_epoch(tables: dict[str, Any]) -> None:
    free, frozen = make(tables), make(tables, ("data.frozen_draws=true",))
    assert same(frozen[0, 3], free[0, 3]) and not same(free[5, 3]._replace(epoch=0), free[0, 3])
    assert same(frozen[5, 3]._replace(epoch=0), free[0, 3]) and frozen[5, 3].epoch == 5
