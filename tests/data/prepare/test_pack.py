"""A folder of images becomes shards: nothing is lost, nothing is changed, and the same folder gives the same bytes."""
from __future__ import annotations

import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import read_image, read_map
from twinview.data.formats import decode
from twinview.data.prepare.pack import pack_images
from twinview.data.store import index
from twinview.data.writing.prepare_sample import Recode
from twinview.errors import DataError


def save(path: Path, seed: int, size: tuple[int, int] = (20, 30), grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 9, size if grey else (*size, 3), np.uint8)).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for n in range(19):
        save(tmp_path / "images" / f"city {n % 2}" / f"frame.{n:02}{'.JPEG' if n % 3 else '.png'}", n)
        save(tmp_path / "labels" / f"city {n % 2}" / f"frame.{n:02}.png", n, grey=True)
    (tmp_path / "images" / "notes.txt").write_text("left out")
    return tmp_path / "images"


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if not p.name.endswith(".npz")}


def test_every_image_with_its_label_map_unchanged(images: Path, tmp_path: Path) -> None:
    found = pack_images(images, tmp_path / "street", tmp_path / "labels")
    assert (found.images, found.labels, found.shards, dict(found.passed_over)) == (19, 19, 7, {".txt": 1}) and found.images_per_second > 0
    assert "19 images with 19 label maps in 7 shards" in found.text() and "1 other file passed over (1 .txt)" in found.text()
    shards = open_shards(str(tmp_path / "street"))
    assert [p.name for p in shards.paths] == [f"street-{n:06}.tar" for n in range(7)]
    assert all(index.read(path) for path in shards.paths if isinstance(path, Path)), "the index is written with the shard"
    assert [shards.key(i) for i in range(len(shards))] == sorted(f"city_{n % 2}/frame_{n:02}" for n in range(19))
    for i in range(len(shards)):
        key, fields = shards.read(i)
        n = int(key[-2:])
        suffix = ".JPEG" if n % 3 else ".png"
        assert fields["jpg" if n % 3 else "png"] == (images / f"city {n % 2}" / f"frame.{n:02}{suffix}").read_bytes()
        assert fields["seg.png"] == (tmp_path / "labels" / f"city {n % 2}" / f"frame.{n:02}.png").read_bytes()


def test_the_manifest_counts_and_sums(images: Path, tmp_path: Path) -> None:
    found = pack_images(images, tmp_path / "out", shard_size=4, name="a name")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["images"] == 19 and manifest["labels"] == 0 and manifest["bytes"] == found.bytes
    assert [s["images"] for s in manifest["shards"]] == [3, 3, 3, 3, 3, 3, 1] and manifest["shards"][0]["name"] == "a_name-000000.tar"
    found_sums = digests(tmp_path / "out")
    assert all(found_sums[s["name"]] == s["sha256"] and (tmp_path / "out" / s["name"]).stat().st_size == s["bytes"] for s in manifest["shards"])


def test_the_same_folder_gives_the_same_bytes(images: Path, tmp_path: Path) -> None:
    pack_images(images, tmp_path / "one", tmp_path / "labels", name="x")
    for path in images.rglob("*"):
        os.utime(path, (1, 1))
    pack_images(images, tmp_path / "two", tmp_path / "labels", name="x")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_webdataset_reads_what_is_packed(images: Path, tmp_path: Path) -> None:
    pack_images(images, tmp_path / "out", tmp_path / "labels")
    urls = [str(p) for p in sorted((tmp_path / "out").glob("*.tar"))]
    streamed = [(s["__key__"], {k: v for k, v in s.items() if not k.startswith("_")}) for s in webdataset.WebDataset(urls, shardshuffle=False)]
    shards = open_shards(urls)
    assert streamed == [tuple(shards.read(i)) for i in range(len(shards))]


def test_shards_stay_under_their_size(images: Path, tmp_path: Path) -> None:
    total = sum(p.stat().st_size for p in images.rglob("*.png")) + sum(p.stat().st_size for p in images.rglob("*.JPEG"))
    found = pack_images(images, tmp_path / "out", max_bytes=total // 10)
    shards = open_shards(str(tmp_path / "out"))
    assert found.shards >= 10 and len(shards) == 19
    assert all(found_.sizes.sum() <= total // 10 or len(found_) == 1 for found_ in shards.indexes)
    assert pack_images(images, tmp_path / "one each", shard_size=1).shards == 19


def refused(said: str, *args: Any, **options: Any) -> None:
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        pack_images(*args, **options)
    assert "\n" not in str(caught.value)


def test_what_is_refused_leaves_nothing_behind_but_finished_shards(images: Path, tmp_path: Path) -> None:
    out, labels = tmp_path / "out", tmp_path / "labels"
    before = sorted(tmp_path.iterdir())
    refused("there is no such folder of images", tmp_path / "no", out)
    refused("holds no images (.jpg, .jpeg, .png, ", Path(__file__).parent, out)
    refused(f"{images}: is there already", images, images)
    refused("--shard-size: wants a number above 0", images, out, shard_size=0)

    label = labels / "city 1" / "frame.01.png"
    data = label.read_bytes()
    label.unlink()
    refused(f"frame.01.JPEG: has no label map {label} (1 of 19 have none)", images, out, labels)
    save(label, 0, (30, 20), grey=True)
    refused(f"{label}: is (30, 20) pixels (height, width), its image (20, 30); a label map has its image's size.", images, out, labels)
    label.write_bytes(b"broken")
    refused(f"{label}: is no PNG; it begins with b'broken', and a label map is a PNG of class numbers. Remove it, or put it right, and pack again: finished shards are kept. bad_samples=N leaves it out.", images, out, labels)
    for mode in ("RGB", "RGBA", "LA"):
        Image.new(mode, (30, 20)).save(label)
        refused(f"{label}: is of PIL mode {mode}, and a label map is a PNG of class numbers: of mode L, P or 1", images, out, labels)
    label.write_bytes(data)

    save(images / "city 0" / "frame 00.png", 0)
    refused("its key 'city_0/frame_00' is that of", images, out)
    (images / "city 0" / "frame 00.png").unlink()
    (images / "zzz.jpg").write_bytes(b"")
    refused("zzz.jpg: is an empty file", images, out)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / ".out.packing"]), "where shards were finished, and only there"
    (images / "zzz.jpg").unlink()
    assert pack_images(images, out, labels).kept == 18 and sorted(tmp_path.iterdir()) == sorted([*before, out])


def test_label_maps_of_every_kind_that_training_reads(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for n, mode in enumerate(("1", "L", "P", "I;16")):
        save(tmp_path / "images" / f"{n}.jpg", n)
        Image.new(mode, (30, 20)).save(tmp_path / "labels" / f"{n}.png")
    pack_images(tmp_path / "images", tmp_path / "out", tmp_path / "labels")
    shards = open_shards(str(tmp_path / "out"))
    assert [read_map(shards, i).shape for i in range(len(shards))] == [(20, 30)] * 4


def test_only_headers_are_read(images: Path, tmp_path: Path) -> None:
    short = (images / "city 1" / "frame.01.JPEG").read_bytes()[:-20]
    (images / "city 1" / "frame.01.JPEG").write_bytes(short)
    pack_images(images, tmp_path / "out")
    shards = open_shards(str(tmp_path / "out"))
    (i,) = (i for i in range(len(shards)) if shards.key(i) == "city_1/frame_01")
    assert shards.read(i).fields == {"jpg": short}


def test_an_empty_folder_may_be_filled(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert pack_images(images, tmp_path / "out").images == 19
    refused("out: is there already. Name a new folder", images, tmp_path / "out")


def test_names_of_any_length_and_language(tmp_path: Path) -> None:
    names = ["a" * 120 + "/" + "b" * 200, "straße/日本", "x"]
    for n, name in enumerate(names):
        save(tmp_path / "images" / f"{name}.png", n)
    pack_images(tmp_path / "images", tmp_path / "out")
    shards = open_shards(str(tmp_path / "out"))
    assert sorted(shards.key(i) for i in range(3)) == sorted(names)


def test_label_maps_inside_the_folder_are_no_images(tmp_path: Path) -> None:
    save(tmp_path / "all" / "a.jpg", 0)
    save(tmp_path / "all" / "labels" / "a.png", 0, grey=True)
    assert pack_images(tmp_path / "all", tmp_path / "out", tmp_path / "all" / "labels").images == 1


def test_a_log_gets_plain_lines(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinview.progress.EVERY", 0.0)
    pack_images(images, tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    assert "pack: 19 of 19 images" in lines and all("\r" not in line for line in lines)
    monkeypatch.setenv("RANK", "1")
    pack_images(images, tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("RANK")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setattr("twinview.progress.DELAY", 0.0)
    pack_images(images, tmp_path / "bar")
    assert "\r" in terminal.getvalue() and "19/19" in terminal.getvalue()


# ---- images encoded anew, measured
def test_larger_images_are_shrunk_and_their_label_maps_with_them(tmp_path: Path) -> None:
    for n, size in enumerate([(20, 30), (50, 40), (8, 90)]):
        save(tmp_path / "images" / f"{n}.png", n, size)
        save(tmp_path / "labels" / f"{n}.png", n, size, grey=True)
    pack_images(tmp_path / "images", tmp_path / "out", tmp_path / "labels", recode=Recode(shorter_side=10))
    shards = open_shards(str(tmp_path / "out"))
    assert [shards.names(i)[0] for i in range(3)] == ["jpg", "jpg", "png"], "the last is small enough: its bytes are untouched"
    assert shards.read(2).fields["png"] == (tmp_path / "images" / "2.png").read_bytes()
    for i, size in enumerate([(10, 15), (12, 10), (8, 90)]):
        assert tuple(read_image(shards, i).shape[1:]) == tuple(read_map(shards, i).shape) == size
        original = decode.label_map((tmp_path / "labels" / f"{i}.png").read_bytes())
        assert torch.equal(read_map(shards, i), decode.resize_map(original, size))


def test_a_quality_encodes_every_image(tmp_path: Path) -> None:
    save(tmp_path / "images" / "color.png", 0, (40, 60))
    save(tmp_path / "images" / "grey.png", 1, (40, 60), grey=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "images" / "turned.jpg", exif=exif)
    sizes = []
    for quality in (30, 95):
        pack_images(tmp_path / "images", tmp_path / f"q{quality}", recode=Recode(quality=quality))
        shards = open_shards(str(tmp_path / f"q{quality}"))
        assert shards.fields == {"jpg"} and [read_image(shards, i).shape[1:] for i in range(3)] == [(40, 60), (40, 60), (60, 40)]
        assert Image.open(io.BytesIO(shards.read(1).fields["jpg"])).mode == "L"
        sizes.append(sum(len(shards.read(i).fields["jpg"]) for i in range(3)))
    assert sizes[0] < sizes[1] * 0.7


@pytest.mark.parametrize("recode", [Recode(), Recode(shorter_side=11, quality=80)])
def test_any_number_of_workers_gives_the_same_bytes(images: Path, tmp_path: Path, recode: Recode) -> None:
    for workers in (1, 2, 5):
        pack_images(images, tmp_path / f"{workers}", tmp_path / "labels", name="x", workers=workers, recode=recode)
    assert digests(tmp_path / "1") == digests(tmp_path / "2") == digests(tmp_path / "5")


def test_channels_mean_and_deviation_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = []
    for n in range(10):
        save(tmp_path / "images" / f"{n:02}.png", n)
        pixels.append(np.array(Image.open(tmp_path / "images" / f"{n:02}.png")) / 255)
    pack_images(tmp_path / "images", tmp_path / "all")
    found = json.loads((tmp_path / "all" / "manifest.json").read_text())
    assert (found["channels"], found["measured"]) == (3, 10)
    assert np.allclose(found["mean"], np.mean(pixels, (0, 1, 2)), atol=6e-5) and np.allclose(found["std"], np.std(pixels, (0, 1, 2)), atol=6e-5)
    monkeypatch.setattr("twinview.data.writing.writer.MEASURED", 4)
    pack_images(tmp_path / "images", tmp_path / "some")
    found = json.loads((tmp_path / "some" / "manifest.json").read_text())
    assert found["measured"] == 4 and np.allclose(found["mean"], np.mean(pixels[::3], (0, 1, 2)), atol=6e-5)
    for n in range(10):
        save(tmp_path / "grey" / f"{n:02}.png", n, grey=True)
    pack_images(tmp_path / "grey", tmp_path / "one")
    found = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert found["channels"] == 1 and len(found["mean"]) == len(found["std"]) == 1


def test_images_that_training_would_not_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a.npy"
    np.save(path, np.zeros((20, 30), np.float32))
    refused(f"{path}: holds float32; images hold uint8 or uint16. Remove it", tmp_path / "images", tmp_path / "out")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    save(tmp_path / "images" / "x.png", 0)
    os.rename(tmp_path / "images" / "x.png", os.fsencode(tmp_path / "images") + b"/caf\xe9 1.png")
    pack_images(tmp_path / "images", tmp_path / "out")
    assert open_shards(str(tmp_path / "out")).key(0) == "caf__1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "workers: wants a number above 0, not 0."),
        ({"recode": Recode(shorter_side=0)}, "--shorter-side: wants a number above 0, not 0."),
        ({"recode": Recode(quality=101)}, "quality: wants a JPEG's quality from 1 to 100, not 101."),
        ({"bad_samples": -1}, "bad_samples: wants a number of at least 0, not -1."),
    ],
)
def test_numbers_that_make_no_sense(images: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    refused(said, images, tmp_path / "out", **options)


def test_camvid(shared: Path, tmp_path: Path) -> None:
    camvid = shared / "data" / "camvid"
    if not camvid.is_dir():
        pytest.skip("needs CamVid")
    found = pack_images(camvid / "images" / "val", tmp_path / "out", camvid / "labels" / "val")
    assert (found.images, found.labels, found.shards) == (101, 101, 8)
