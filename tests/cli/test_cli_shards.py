"""What `twinview shards` refuses leaves nothing behind."""
from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from processes import Processes

from twinview.cli import main
from twinview.data.dataset.open import open_shards


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "0"], "--count: wants a number of at least 1, not 0."),
        (["--count", "-1"], "--count: wants a number of at least 1, not -1."),
        (["--seed", "-3"], "--seed: wants a number of at least 0, not -3."),
        (["--size", "16x240"], "--size: wants HEIGHTxWIDTH in pixels, each at least 32, for example 160x240, not '16x240'."),
    ],
)
def test_scenes_that_cannot_be_drawn(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "scenes", str(tmp_path / "out"), "--count", "1", "--size", "32x48", *words]) == 2
    assert capsys.readouterr().err == f"twinview: {said}\n"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for n in range(12):
        (tmp_path / "photos" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (n * 20, 0, 0)).save(tmp_path / "photos" / "ab"[n % 2] / f"{n}.png")
    return tmp_path / "photos"


def test_pack_with_every_option_then_check_and_count(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "a" / "broken.jpg").write_bytes(b"")
    out = tmp_path / "out"
    options = ["--shard-size", "5", "--shorter-side", "12", "--quality", "80", "--workers", "2", "--bad-samples", "1"]
    assert main(["shards", "pack", "imagefolder", str(photos), str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: 12 images in 7 shards, ") and printed.endswith("; 1 bad samples left out, named in manifest.json\n")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kind"] == "imagefolder" and manifest["classes"] == ["a", "b"] and manifest["left_out"] == [f"{photos / 'a' / 'broken.jpg'}: is an empty file"]
    assert main(["shards", "check", str(out)]) == 0
    assert capsys.readouterr().out == "7 shards, 12 images, 0 label maps: nothing wrong\n"
    assert main(["shards", "stat", str(out), "--images", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "looked into 6, evenly spaced; 0 of them bad" in lines and "height      12 to 12 pixels, median 12" in lines
    assert "classes     2: 0 50.0%, 1 50.0%" in lines
    assert Image.open(io.BytesIO(open_shards(str(out)).read(0).fields["jpg"])).size == (16, 12)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["images", "PHOTOS", "OUT", "--split", "train"], "--split: images has no such choice. It takes --labels."),
        (["coco", "PHOTOS", "OUT", "--classes", "19"], "--classes: coco has no such choice. It takes --split, --annotations."),
        (["coco", "PHOTOS", "OUT"], "--split: there is no split 'train2017'. There is: a, b."),
        (["cityscapes", "PHOTOS", "OUT"], "PHOTOS/leftImg8bit: there is no such folder of Cityscapes' images."),
        (["images", "PHOTOS", "OUT", "--quality", "0"], "--quality: wants a number above 0, not 0."),
    ],
)
def test_what_pack_refuses(words: list[str], said: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [{"PHOTOS": str(photos), "OUT": str(tmp_path / "out")}.get(word, word) for word in words]
    assert main(["shards", "pack", *words]) == 2
    assert capsys.readouterr().err == f"twinview: {said.replace('PHOTOS', str(photos))}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def test_a_folder_whose_name_is_no_text(photos: Path, tmp_path: Path, processes: Processes) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert main(["shards", "pack", "images", str(photos), str(tmp_path / "out")]) == 0
    (tmp_path / "out").rename(folder)
    (folder / "out-000003.tar").write_bytes(b"")
    found = processes.run("shards", "check", str(folder), env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert found.returncode == 2 and r"caf\udce9/out-000003.tar, offset 0: the file is empty." in found.stdout and "Traceback" not in found.stderr
