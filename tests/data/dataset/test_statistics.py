"""What `pack` measures of images of any kind, and what recipes make of it."""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from twinview.data.dataset.open import open_shards
from twinview.data.dataset.statistics import with_measured
from twinview.data.formats import decode
from twinview.data.formats.decode import PixelFormat
from twinview.data.prepare.check import check_shards
from twinview.data.prepare.pack import pack_images
from twinview.data.prepare.stats import count, draw_sheet
from twinview.data.writing.prepare_sample import Recode
from twinview.errors import DataError
from twinview.recipe import Recipe, read

Make = Callable[..., Path]
TOP = 4095  # of a camera of 12 bits


def picture(seed: int, channels: int, top: int = TOP, height: int = 24, width: int = 32) -> Any:
    """[C, H, W] of whole numbers up to `top`, each channel darker than the one before."""
    scale = top / (1 + np.arange(channels))[:, None, None]
    return (np.random.default_rng(seed).random((channels, height, width)) ** 2 * scale).astype(np.uint16 if top > 255 else np.uint8)


@pytest.fixture
def packed(tmp_path: Path) -> Make:
    """Pack ten images of a kind: the folder of shards, NAME; what stands before is packed with them."""

    def make(name: str, kind: str, channels: int, top: int = TOP, **options: Any) -> Path:
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        for n in range(10):
            pixels, path = picture(n, channels, top), folder / f"{kind}{n}.{kind}"
            if kind == "npy":
                np.save(path, np.moveaxis(pixels, 0, 2))
            elif kind == "tif":
                tifffile.imwrite(path, pixels, photometric="minisblack")
            else:
                Image.fromarray(pixels[0] if channels == 1 else np.moveaxis(pixels, 0, 2)).save(path)
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        return pack_images(folder, tmp_path / name, **options).out

    return make


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


@pytest.mark.parametrize(("kind", "channels", "top"), [("png", 1, TOP), ("tif", 5, TOP), ("npy", 2, 65535), ("npy", 5, 255), ("png", 1, 255), ("png", 3, 255)])
def test_statistics_are_numpys(packed: Make, kind: str, channels: int, top: int) -> None:
    folder = packed("a", kind, channels, top)
    found, pixels = manifest(folder), np.stack([picture(n, channels, top) for n in range(10)])
    bits, full, digits = (16, 65535, 5e-8) if top > 255 else (8, 255, 5e-5)
    assert (found["channels"], found["bits"], found["kinds"], found["measured"]) == (channels, bits, {f"{channels}x{bits}": 10}, 10)
    assert np.allclose(found["mean"], pixels.mean((0, 2, 3)) / full, rtol=0, atol=1.1 * digits)
    assert np.allclose(found["std"], pixels.std((0, 2, 3)) / full, rtol=0, atol=1.1 * digits)
    assert found["largest"] == pixels.max((0, 2, 3)).tolist()
    assert np.allclose(found["p99.9"], np.quantile(pixels, 0.999, (2, 3), method="inverted_cdf").mean(0), rtol=0, atol=0.51)
    shards = open_shards(str(folder))
    assert np.array_equal(decode.values(shards.read(0).fields[kind]).numpy(), pixels[0]), "the bytes are untouched"
    assert not check_shards([str(folder)]).faults
    stat = count([str(folder)], 100)
    assert all(stat.colors[name] == found[name] for name in ("channels", "bits", "kinds", "mean", "std", "largest", "p99.9"))
    assert f"kinds       10 of {channels}x{bits}" in stat.lines()
    draw_sheet([str(folder)], folder / "sheet.png")
    assert len(np.unique(np.array(Image.open(folder / "sheet.png")))) > 50


def test_deep_images_are_shrunk_without_loss_of_depth(packed: Make, tmp_path: Path) -> None:
    for kind, channels, field in (("png", 1, "png"), ("npy", 5, "npy"), ("tif", 2, "npy")):
        shards = open_shards(str(packed("small", kind, channels, recode=Recode(shorter_side=12))))
        assert shards.names(0) == [field]
        found, original = decode.values(shards.read(0).fields[field]), picture(0, channels)
        assert found.shape == (channels, 12, 16) and decode.image_header(shards.read(0).fields[field]).bits == 16
        blocks = original.reshape(channels, 12, 2, 16, 2).mean((2, 4))
        assert np.corrcoef(found[0].numpy().ravel(), blocks[0].ravel())[0, 1] > 0.9 and abs(found[0].numpy().mean() / blocks[0].mean() - 1) < 0.05
        shutil.rmtree(tmp_path / "images")
    shards = open_shards(str(packed("bytes", "tif", 1, 255, recode=Recode(shorter_side=12))))
    assert shards.names(0) == ["jpg"] and decode.image(shards.read(0).fields["jpg"], PixelFormat(1)).shape == (1, 12, 16)
    with pytest.raises(DataError, match=re.escape("has 5 x 16 bits a pixel, which no JPEG holds: pack it without quality=N.")):
        packed("jpeg", "npy", 5, recode=Recode(quality=90))


# ---- recipes
def resolved(toy: dict[str, Any], *folders: Path, **data: Any) -> Recipe:
    table = {"shards": [str(folder) for folder in folders], "mean": "shards", "std": "shards", **data}
    recipe = read({**toy, "data": table})
    return with_measured(recipe, open_shards(recipe.data.shards))


def test_the_numbers_of_the_manifest_on_the_recipes_scale(packed: Make, toy: dict[str, Any]) -> None:
    rgb, grey, deep = packed("rgb", "png", 3, 255), packed("grey", "png", 1, 255), packed("deep", "npy", 5)
    found = manifest(rgb)
    assert resolved(toy, rgb).data.colors() == (found["mean"], found["std"])
    assert resolved(toy, rgb, mean=[0.5, 0.5, 0.5]).data.colors() == ([0.5] * 3, found["std"])
    older = {key: value for key, value in found.items() if key not in ("bits", "kinds")}
    for shard in older["shards"]:
        del shard["kinds"]
    (rgb / "manifest.json").write_text(json.dumps(older))
    assert resolved(toy, rgb).data.colors() == (found["mean"], found["std"])
    found = manifest(grey)
    assert resolved(toy, grey, channels=1).data.colors() == (found["mean"], found["std"])
    assert resolved(toy, grey).data.colors() == (found["mean"] * 3, found["std"] * 3)
    pixels = np.stack([picture(n, 5) for n in range(10)]) / TOP
    mean, std = resolved(toy, deep, channels=5, white=TOP).data.colors()
    assert np.allclose(mean, pixels.mean((0, 2, 3)), atol=2e-6) and np.allclose(std, pixels.std((0, 2, 3)), atol=2e-6)
    assert resolved(toy, deep, channels=5, white=65535).data.colors()[0] == manifest(deep)["mean"]


def test_what_the_manifest_tells_against_is_refused(packed: Make, toy: dict[str, Any], tmp_path: Path) -> None:
    rgb, deep = packed("rgb", "png", 3, 255), packed("deep", "npy", 5)
    bare, largest = tmp_path / "bare", max(manifest(deep)["largest"])
    shutil.copytree(rgb, bare)
    (bare / "manifest.json").unlink()
    packed("mixed", "tif", 2)
    mixed = packed("mixed", "npy", 5, 255)
    assert [manifest(mixed)[key] for key in ("channels", "bits", "kinds", "measured")] == [None, None, {"5x8": 10, "2x16": 10}, 0]
    faults: list[tuple[tuple[Path, ...], dict[str, Any], str]] = [
        ((deep,), {}, f"the shards hold other images: 10 of 5 x 16 bits. Write channels = 5, white = 65535 (what is full scale; the largest value seen is {largest})."),
        ((rgb,), {"channels": 1}, "[data] channels = 1, white = 0: the shards hold other images: 10 of 3 x 8 bits. Write channels = 3."),
        ((mixed,), {"channels": 5}, "10 of 2 x 16 bits, 10 of 5 x 8 bits. A recipe trains images of one number of channels: pack each by itself."),
        ((mixed,), {"channels": 5, "bad_samples": 10}, f'"shards": {mixed / "manifest.json"} measured none: it mixes kinds of images. Write numbers;'),
        ((bare,), {}, f'[data] mean, std = "shards": {bare / "manifest.json"} is not there, or not of `twinview shards pack`. Write numbers;'),
    ]
    for folders, data, said in faults:
        with pytest.raises(DataError, match=re.escape(said)) as caught:
            resolved(toy, *folders, **data)
        assert "\n" not in str(caught.value)


def test_manifests_that_do_not_agree(packed: Make, toy: dict[str, Any]) -> None:
    one = packed("one", "png", 3, 255)
    other = packed("other", "tif", 3, 127)
    with pytest.raises(DataError, match="2 manifests do not agree. Write mean = ") as caught:
        resolved(toy, one, other)
    numbers = re.findall(r"\[([^]]+)\]", str(caught.value).partition("Write")[2])
    pixels = np.concatenate([np.stack([picture(n, 3, top) for n in range(10)]) for top in (255, 127)]) / 255
    for text, expected in zip(numbers, (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)))):
        assert np.allclose([float(x) for x in text.split(",")], expected, atol=2e-4)


@pytest.mark.parametrize(("key", "value"), [("mean", "abc"), ("mean", [0.1, 0.2]), ("std", [0.1, None, 0.2]), ("shards", [{"kinds": {}}])])
def test_a_manifest_that_somebody_else_wrote(packed: Make, toy: dict[str, Any], key: str, value: Any) -> None:
    folder = packed("rgb", "png", 3, 255)
    opened = open_shards(str(folder))
    (folder / "manifest.json").write_text(json.dumps(manifest(folder) | {key: value}))
    with pytest.raises(DataError, match=r"manifest\.json is not there, or not of `twinview shards pack`"):
        with_measured(read({**toy, "data": {"shards": str(folder), "mean": "shards", "std": "shards"}}), opened)
    for kinds in ({"color": 1}, {"3x8": "many"}, {"3x8x1": 1}, None, [1]):
        shards = [{**shard, "kinds": kinds} for shard in manifest(folder)["shards"]] if key != "shards" else value
        (folder / "manifest.json").write_text(json.dumps(manifest(folder) | {"shards": shards}))
        recipe = read({**toy, "data": {"shards": str(folder)}})
        assert with_measured(recipe, opened) is recipe


def test_a_channel_that_never_changes_is_refused(packed: Make, toy: dict[str, Any]) -> None:
    folder = packed("rgb", "png", 3, 255)
    (folder / "manifest.json").write_text(json.dumps(manifest(folder) | {"std": [0.2, 0.0, 0.2]}))
    with pytest.raises(DataError, match=r'std = "shards": is \[0\.2, 0\.0, 0\.2\]; a channel of 0 is the same everywhere'):
        resolved(toy, folder)


def test_a_manifest_that_lies_elsewhere(packed: Make, toy: dict[str, Any], server: Any) -> None:
    folder = packed("rgb", "png", 3, 255)
    shutil.copytree(folder, server.folder / "far")
    recipe = read({**toy, "data": {"shards": f"{server.url}/far", "mean": "shards", "std": "shards"}})
    assert with_measured(recipe, open_shards(recipe.data.shards)).data.colors() == (manifest(folder)["mean"], manifest(folder)["std"])
    (server.folder / "far" / "manifest.json").unlink()
    bare = read({**toy, "data": {"shards": f"{server.url}/far/rgb-000000.tar?signature=secret", "mean": "shards"}})
    with pytest.raises(DataError, match=re.escape(f"{server.url}/far/manifest.json")) as caught:
        with_measured(bare, open_shards(bare.data.shards))
    assert "secret" not in str(caught.value)
