"""A batch made at once is what its items one by one come to: pixels, boxes, draws, masks, labels and replacements."""
from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twinview.assembly import assemble
from twinview.data.dataset.open import open_shards
from twinview.data.loading import at_once
from twinview.data.loading.cutting import on_pixels, on_pixels_batch
from twinview.data.loading.views import ViewDataset
from twinview.errors import ContractError, PluginError, RecipeError
from twinview.recipe import read
from twinview.testing.data_checks import differing
from twinview.values import Geometry

Write = Callable[[str, Mapping[str, bytes]], Path]
Pixels = Any
CROPS: dict[str, Any] = {"views": {"use": "byol.crops", "size": 24}, "augment": {"use": "byol.photometry", "solarize": [0.5, 0.5], "blur": [0.5]}}


def photo(n: int, height: int, width: int) -> Pixels:
    small = np.random.default_rng(n).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def files() -> dict[str, bytes]:
    """JPEGs of every sampling, turned by EXIF, progressive, grey and of four inks; PNGs with and without a palette; sizes of 1 to 500 pixels."""
    found = {f"s{n}.jpg": saved(photo(n, 40 + n, 61 - n), "JPEG", subsampling=n % 3, quality=70 + n) for n in range(8)}
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        found[f"turned{turn}.jpg"] = saved(photo(turn, 30, 47), "JPEG", exif=exif)
    found["progressive.jpg"] = saved(photo(20, 33, 55), "JPEG", progressive=True)
    found["rgb.jpg"] = saved(photo(26, 33, 55), "JPEG", keep_rgb=True)
    found["grey.jpg"] = saved(photo(21, 33, 55).convert("L"), "JPEG")
    found["inks.jpg"] = saved(photo(22, 33, 55).convert("CMYK"), "JPEG")
    found["flat.png"] = saved(photo(23, 33, 55), "PNG")
    found["palette.png"] = saved(photo(24, 33, 55).convert("P"), "PNG")
    found["flat_grey.png"] = saved(photo(25, 33, 55).convert("L"), "PNG")
    for n, (height, width) in enumerate([(1, 1), (1, 40), (70, 2), (8, 500), (300, 260)]):
        found[f"size{n}.jpg"] = saved(photo(30 + n, height, width), "JPEG")
    return found


def make(tables: dict[str, Any], *overrides: str) -> ViewDataset:
    recipe = read(tables, overrides)
    assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
    return ViewDataset(recipe, assembly.dims(assembly.encoder(), len(shards), shards.classes), shards)


def check_same(views: ViewDataset, places: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the batch of some places, both ways."""
    assert at_once.fits(views.recipe, views.dims)
    batch, bad = views.collate(places)
    with monkeypatch.context() as patch:
        patch.setattr("twinview.data.loading.views.fits", lambda *_: False)
        other, others = views.collate(places)
    assert differing(batch, other) == "" and [str(one) for one in bad] == [str(one) for one in others]
    assert all(a.is_contiguous() and a.shape == b.shape and a.dtype == b.dtype for a, b in zip(batch.images, other.images, strict=True))
    for one, same in ((batch, other), (batch.geometry, other.geometry)):
        pairs: list[tuple[str, Any, Any]] = [*zip(type(one)._fields, one, same)]
        for name, a, b in pairs:
            if isinstance(a, torch.Tensor):
                assert a.dtype == b.dtype and torch.equal(a, b), name
            elif isinstance(a, dict):
                assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a), name
            elif name not in ("geometry", "images", "hidden", "augment"):
                assert a == b, name


@pytest.fixture
def photos(tables: dict[str, Any], write: Write) -> dict[str, Any]:
    """A recipe of BYOL's crops and photometry of such files."""
    table = {key: value for key, value in tables.items() if key != "masks"}
    return {**table, **CROPS, "data": {"shards": str(write("photos.tar", files())), "workers": 0}}


@pytest.mark.parametrize("size", [24, 33, 8])
def test_files_of_every_kind(photos: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    views = make(photos, f"views.size={size}")
    for epoch in (0, 3):
        check_same(views, [(epoch, i) for i in range(len(views))], monkeypatch)


@pytest.mark.parametrize("held", [1, 1 << 30])
def test_samples_that_an_epoch_has_again_and_batches_in_parts(photos: dict[str, Any], held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "HELD", held)
    views = make(photos, "data.augment_on=device")
    check_same(views, [(1, i + again * len(views)) for again in (0, 1, 2) for i in (3, 0, 3, 7)], monkeypatch)


def test_parts_that_take_one_image_go_on_working(tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Views, draws and masks of a plugin that knows nothing of batches; notes, labels, three sizes of views."""
    views = make(tables)
    assert not any(views._batches().batched.values())
    check_same(views, [(2, n) for n in (4, 40, 13, 4)], monkeypatch)


def test_bad_samples_are_replaced_alike(photos: dict[str, Any], tables: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    good = files()
    cut = {name: data[: len(data) // 2] if name in ("s3.jpg", "flat.png") else b"broken" if name == "s4.jpg" else data for name, data in good.items()}
    for table in (photos, tables):
        views = make({**table, "data": {"shards": str(write("broken.tar", cut)), "workers": 0, "bad_samples": 9}})
        check_same(views, [(0, i) for i in range(len(views))], monkeypatch)
        everything = [(5, i) for i in (3, 4)]  # the bad ones alone
        check_same(views, everything, monkeypatch)


def test_what_is_not_made_at_once(photos: dict[str, Any]) -> None:
    for override in ("data.white=255", "data.decode=scaled"):
        views = make(photos, override, "augment.saturation=0.0", "augment.hue=0.0", "augment.grey=0.0")
        assert not at_once.fits(views.recipe, views.dims)


@pytest.mark.parametrize("seed", range(3))
def test_boxes_of_a_batch_are_those_of_its_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes, corners = rng.integers(1, 300, (40, 2)), np.sort(rng.random((40, 3, 2, 2)), 2).astype(np.float32)
    corners[:10] = np.round(corners[:10] * 8) / 8  # halves of pixels, and boxes of no width
    boxes, pixels = on_pixels_batch(corners.reshape(40, 3, 4), sizes)
    for b, (height, width) in enumerate(sizes.tolist()):
        one = Geometry(torch.from_numpy(corners[b].reshape(3, 4)), torch.zeros(3, dtype=torch.bool), torch.tensor([0, 0]), ((4, 4),) * 3, ())
        geometry, expected = on_pixels(one, height, width)
        assert pixels[b].tolist() == expected and np.array_equal(boxes[b], geometry.boxes.numpy())


# ---- hooks for several images at once
BATCHES = '''
import numpy as np
import torch
from twinview.hooks import hookimpl, part
from twinview_byol.crops import Crops
from twinview_byol.photometry import Photometry


@part
class Overridden(Crops):
    """Inherits the views of a batch, which it knows nothing of."""

    @hookimpl
    def sample_views(self, size, rng):
        return Crops.sample_views(self, size, rng)._replace(flips=torch.ones(2, dtype=torch.bool))


@part
class Nothing(Crops):
    """Leaves it to the hook for one image."""

    @hookimpl
    def sample_views(self, size, rng):
        return Crops.sample_views(self, size, rng)

    @hookimpl
    def sample_views_batch(self, sizes, keys):
        return None


@part
class Wrong(Nothing):
    @hookimpl
    def sample_views_batch(self, sizes, keys):
        found = Crops.sample_views_batch(self, sizes, keys)
        return found._replace(flips=~found.flips)


@part
class WrongDraws(Photometry):
    @hookimpl
    def draw_augment_batch(self, view, size, keys):
        return Photometry.draw_augment_batch(self, view, size, keys[:, ::-1].copy())


@part
class Same(Photometry):
    """Gives the pixels that it was given."""

    @hookimpl
    def apply_augment(self, pixels, params):
        return pixels.flip(-1).flip(-1) if self.jitter else pixels


@part
class Half:
    @hookimpl
    def draw_augment_batch(self, view, size, keys):
        return {}


@part
class Wrapper:
    """Mirrors every view, whoever samples them."""

    @hookimpl(wrapper=True)
    def sample_views(self, size):
        found = yield
        return found._replace(flips=torch.ones(len(found.flips), dtype=torch.bool))


@hookimpl
def parts():
    return {"overridden": Overridden, "nothing": Nothing, "wrong": Wrong, "wrong_draws": WrongDraws, "half": Half, "same": Same, "wrapper": Wrapper}
'''


@pytest.mark.parametrize(
    "change",
    [
        {"views": {"use": "batches.overridden", "size": 24}},
        {"views": {"use": "batches.nothing", "size": 24}},
        {"extra": [{"use": "batches.wrapper"}]},
        {"views": {"use": "swav.multi_crop", "size": 24}},
        {"views": {"use": "siameseim.crops", "size": 24}},
        {"augment": {**CROPS["augment"], "coins": "each", "order": "fixed", "blur_reference": 40, "views": [1]}},
    ],
    ids=lambda change: str(next(iter(change.values()))),
)
def test_whoever_draws(photos: dict[str, Any], install: Callable[..., None], change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    install("batches", BATCHES)
    views = make({**photos, **change}, "data.augment_on=device")
    check_same(views, [(0, i) for i in (0, 5, 12, 3)], monkeypatch)
    flips = views.collate([(0, i) for i in range(12)])[0].geometry.flips
    assert bool(flips.all()) == ("overridden" in str(change) or "wrapper" in str(change))


def test_a_batch_stays_as_it_is_when_the_next_is_made(photos: dict[str, Any], install: Callable[..., None]) -> None:
    """Views are cut into the same memory again, also where photometry gives back what it was given."""
    install("batches", BATCHES)
    for jitter in (0.0, 0.5):
        views = make({**photos, "augment": {"use": "batches.same", "jitter": jitter}})
        batch, _ = views.collate([(0, 1), (0, 2), (0, 3)])
        before = [images.clone() for images in batch.images]
        views.collate([(0, 9), (0, 8)])
        assert all(torch.equal(a, b) for a, b in zip(before, batch.images))


def test_a_batch_that_is_drawn_otherwise_than_its_images_is_refused(photos: dict[str, Any], install: Callable[..., None]) -> None:
    install("batches", BATCHES)
    with pytest.raises(ContractError, match=r"^\[views\] batches\.wrong: sample_views_batch\(\) gives other boxes than sample_views\(\) for the same"):
        make({**photos, "views": {"use": "batches.wrong", "size": 24}}).collate([(0, 1), (0, 2)])
    with pytest.raises(ContractError, match=r"^\[augment\] batches\.wrong_draws: draw_augment_batch\(\) gives another '\w+' than draw_augment\(\)"):
        make({**photos, "augment": {"use": "batches.wrong_draws"}}).collate([(0, 1), (0, 2)])
    with pytest.raises((PluginError, RecipeError), match=r"batches\.half: answers draw_augment_batch and not draw_augment, which is asked for one"):
        make({**photos, "extra": [{"use": "batches.half"}]})
