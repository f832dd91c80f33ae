"""`shards check` reads all and names each fault; `shards stat` counts."""
from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinview.cli import main
from twinview.data.prepare.check import check_shards
from twinview.data.prepare.pack import pack_images
from twinview.data.prepare.stats import count
from twinview.errors import DataError
from twinview.ops.sheet import palette


def save(path: Path, seed: int, size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 9, (*size, 3), np.uint8)).save(path)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """16 images with label maps in 8 shards."""
    for n in range(16):
        save(tmp_path / "images" / f"{n:02}.jpg", n, (20 + n, 30))
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(np.full((20 + n, 30), n % 4, np.uint8)).save(tmp_path / "labels" / f"{n:02}.png")
    pack_images(tmp_path / "images", tmp_path / "set", tmp_path / "labels")
    return tmp_path / "set"


@pytest.mark.parametrize("workers", [1, 3])
def test_nothing_wrong(packed: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_shards([str(packed)], workers=workers)
    assert found.faults == () and (found.shards, found.images, found.labels) == (8, 16, 16)
    assert main(["shards", "check", str(packed), "--workers", str(workers)]) == 0
    assert capsys.readouterr().out == "8 shards, 16 images, 16 label maps: nothing wrong\n"


def test_every_fault_is_named(packed: Path, tmp_path: Path, write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tars = sorted(packed.glob("*.tar"))
    tars[0].unlink()
    os.truncate(tars[1], 1500)
    data = bytearray(tars[2].read_bytes())
    data[512 + 15] ^= 2  # the pixel density of the first image, which still decodes
    tars[2].write_bytes(data)
    good = (tmp_path / "images" / "00.jpg").read_bytes()
    wrong = (tmp_path / "labels" / "01.png").read_bytes()
    extra = {"07.jpg": good, "x.jpg": good[:640], "y.jpg": good, "y.seg.png": wrong, "y.cls": b"", "z.txt": b"", "../../w.jpg": good}
    write("set/zz.tar", extra)
    found = check_shards([str(packed)])
    said = [
        f"{tars[0]}: is missing; manifest.json names it",
        f"{packed / 'zz.tar'}: manifest.json does not name it",
        rf"{tars[1]}: has \d+ bytes, and \d+ in manifest.json",
        rf"{tars[1]}, offset \d+: .*",
        f"{tars[2]}: has another sha256 than in manifest.json",
        rf"{packed / 'zz.tar'}, sample '07': stands already in {tars[3]}",
        f"{packed / 'zz.tar'}, sample '../../w': the key names a place outside of the shard",
        f"{packed / 'zz.tar'}, sample 'x': cannot be decoded: .*",
        f"{packed / 'zz.tar'}, sample 'y': has no class; its field cls holds b''",
        rf"{packed / 'zz.tar'}, sample 'y': its label map is \(21, 30\) pixels \(height, width\), its image \(20, 30\)",
        f"{packed / 'zz.tar'}, sample 'z': has no image .*",
    ]
    assert len(found.faults) == len(said), found.faults
    for pattern in said:
        assert any(re.fullmatch(pattern, fault) for fault in found.faults), (pattern, found.faults)
    assert main(["shards", "check", str(packed)]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == list(found.faults)
    assert printed.err.splitlines()[-1] == f"twinview: {len(said)} faults in 8 shards, 15 images, 13 label maps."


def test_where_there_is_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.tar"):
        check_shards([str(tmp_path)])
    with pytest.raises(DataError, match="there is no such shard"):
        check_shards([str(tmp_path / "x.tar")])
    with pytest.raises(DataError, match="workers: wants a number above 0, not 0"):
        check_shards([str(tmp_path)], workers=0)


def test_counts(packed: Path, capsys: pytest.CaptureFixture[str], write: Any) -> None:
    found = count([str(packed)], 1000)
    assert (found.shards, found.samples, found.looked) == (8, 16, 16) and found.fields == {"jpg": 16, "seg.png": 16}
    assert (min(found.heights), max(found.heights), set(found.widths)) == (20, 35, {30}) and found.classes == {}
    assert found.labels == {label: sum((20 + n) * 30 for n in range(16) if n % 4 == label) for label in range(4)}
    manifest = json.loads((packed / "manifest.json").read_text())
    assert all(found.colors[name] == manifest[name] for name in ("channels", "mean", "std"))
    assert count([str(packed)], 4).looked == 4
    lines = found.lines()
    assert "samples     16" in lines and "height      20 to 35 pixels, median 28" in lines and "channels    3" in lines
    assert lines[-1].startswith("label maps  4 numbers, by pixels: 3 ")
    broken = write("broken.tar", {"a.jpg": b"no", "a.cls": b"1", "b.jpg": (packed.parent / "images" / "03.jpg").read_bytes(), "b.cls": b"7"})
    found = count([str(broken)], 1000)
    assert len(found.bad) == 1 and found.classes == {7: 1} and any("sample 'a': is no image" in line for line in found.lines())
    with pytest.raises(DataError, match="images: wants a number above 0, not 0"):
        count([str(packed)], 0)


def test_a_picture_of_samples(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert main(["shards", "stat", str(packed), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"picture     {out}"
    with Image.open(out) as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24) or ()}
        assert picture.width > 600 and picture.height > 400
    assert {*palette(4)} <= colors, "a legend of the four numbers"
    assert main(["shards", "stat", str(packed), "--out", str(tmp_path / "no" / "sheet.png")]) == 2
    assert "sheet.png: cannot be written: No such file or directory." in capsys.readouterr().err
