"""JPEGs decoded smaller: the same places, nearly the same pixels, and only where no view wants more."""
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
from twinview.data.dataset.read import BadSample
from twinview.data.dataset.read import read as read_field
from twinview.data.formats import jpeg_draft
from twinview.data.loading.cutting import on_pixels
from twinview.data.loading.views import ViewDataset
from twinview.errors import DataError
from twinview.recipe import read
from twinview.values import Geometry, cell_centers

Write = Callable[[str, Mapping[str, bytes]], Path]


def places(height: int, width: int) -> Any:
    """Red is a pixel's x, green its y, as shares of 255."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    return (np.stack([x, y, np.full_like(x, 0.5)], -1) * 255).astype(np.uint8)


def jpeg(pixels: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def views(tables: dict[str, Any], path: Path, *overrides: str) -> ViewDataset:
    table = {k: v for k, v in tables.items() if k not in ("masks", "augment")}
    recipe = read({**table, "data": {"shards": str(path), "workers": 0}}, overrides)
    assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
    return ViewDataset(recipe, assembly.dims(assembly.encoder(), len(shards), shards.classes), shards)


def geometry(box: list[float], rows: int, columns: int) -> Geometry:
    return Geometry(torch.tensor([box]), torch.tensor([False]), torch.tensor([0, 0]), ((rows, columns),), ())


@pytest.mark.parametrize("size", [(400, 600), (401, 607), (391, 333)])
def test_pixels_lie_where_geometry_says(tables: dict[str, Any], write: Write, size: tuple[int, int]) -> None:
    """Sides that no unit divides included; the sampler's views are 8 to 16 px, so of 400 px and more all are decoded smaller."""
    path = write("x.tar", {f"{n}.jpg": jpeg(places(*size)) for n in range(4)})
    full, scaled = views(tables, path), views(tables, path, "data.decode=scaled")
    for n in range(4):
        one, other = full[0, n], scaled[0, n]
        assert other.geometry.source.tolist() == list(size) and torch.equal(one.geometry.flips, other.geometry.flips)
        assert not torch.equal(one.images[0], other.images[0]), "decoded as asked"
        sides = torch.tensor([size[1], size[0]] * 2)
        assert ((one.geometry.boxes - other.geometry.boxes).abs() * sides <= 8).all(), "half a unit, and what is left of a side"
        for v, grid in enumerate(other.geometry.sizes):
            expected = (other.geometry.to_source(cell_centers(grid), v) * torch.tensor([size[1], size[0]]) - 0.5) / torch.tensor([size[1], size[0]])
            found = other.images[v][:2].flatten(1).T / 255
            inner = ((cell_centers(grid) > 0.15) & (cell_centers(grid) < 0.85)).all(1)
            assert ((found - expected)[inner].abs() < 2.5 / 255).all()
            assert (other.images[v].int() - one.images[v].int()).abs().float().mean() < 3


def test_the_unit_is_what_the_views_leave_room_for() -> None:
    for box, size, unit in (
        ([0.0, 0, 1, 1], (100, 100), 4), ([0.0, 0, 1, 1], (100, 101), 4), ([0.0, 0, 0.5, 1], (100, 100), 4), ([0.0, 0, 0.5, 0.5], (100, 100), 2),
        ([0.0, 0, 0.2, 1], (100, 100), 1), ([0.0, 0, 1, 1], (40, 40), 8), ([0.0, 0, 1, 1], (500, 20), 1),
    ):
        assert jpeg_draft.unit(geometry(box, *size), (400, 808)) == unit
    both = Geometry(torch.tensor([[0.0, 0, 1, 1], [0.0, 0, 0.3, 0.3]]), torch.zeros(2), torch.zeros(2), ((50, 50), (50, 50)), ())
    assert jpeg_draft.unit(both, (400, 808)) == 2


def test_boxes_are_whole_units_of_the_source() -> None:
    found, pixels = on_pixels(geometry([0.1, 0.2, 1.0, 1.0], 10, 10), 101, 203, 4)
    assert pixels == [[5, 5, 50, 25]]
    assert torch.allclose(found.boxes, torch.tensor([[20 / 203, 20 / 101, 200 / 203, 100 / 101]]))


def test_other_files_are_decoded_whole(tables: dict[str, Any], write: Write) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    png, cmyk = io.BytesIO(), io.BytesIO()
    Image.fromarray(places(400, 600)).save(png, "PNG")
    Image.fromarray(places(400, 600)).convert("CMYK").save(cmyk, "JPEG")
    path = write("x.tar", {"a.png": png.getvalue(), "b.jpg": cmyk.getvalue(), "c.jpg": jpeg(places(400, 600), exif=turned)})
    full, scaled = views(tables, path), views(tables, path, "data.decode=scaled")
    for n in range(3):
        assert torch.equal(full[0, n].geometry.boxes, scaled[0, n].geometry.boxes)
        assert all(torch.equal(a, b) for a, b in zip(full[0, n].images, scaled[0, n].images))


def test_grey_and_small_ones(tables: dict[str, Any], write: Write) -> None:
    path = write("x.tar", {"a.jpg": jpeg(places(400, 600)[:, :, 0]), "b.jpg": jpeg(places(9, 9))})
    scaled = views(tables, path, "data.decode=scaled")
    grey = scaled[0, 0].images[0]
    assert grey.shape == (3, 12, 16) and torch.equal(grey[0], grey[1]) and scaled[0, 1].geometry.source.tolist() == [9, 9]
    for height, width in ((1, 1), (7, 3), (17, 8), (15, 31)):
        for unit in jpeg_draft.UNITS:
            data = jpeg(places(height, width))
            assert jpeg_draft.image(data, 1).shape == (3, height, width)
            if min(height, width) >= unit:
                assert jpeg_draft.image(data, unit).shape == (3, -(-height // unit), -(-width // unit))


def test_a_file_cut_short_is_a_bad_sample(tables: dict[str, Any], write: Write) -> None:
    whole = jpeg(places(400, 600))
    path = write("x.tar", {"a.jpg": whole[:3000], "b.jpg": whole})
    with pytest.raises(DataError, match=r"sample 'a': cannot be decoded: .*\. \[data\] bad_samples lets 0 pass"):
        views(tables, path, "data.decode=scaled")[0, 0]
    assert views(tables, path, "data.decode=scaled", "data.bad_samples=2")[0, 0].key == "b"
    with pytest.raises(BadSample):
        read_field(open_shards(str(path)), 0, lambda data: jpeg_draft.image(data, 4))
