"""What goes wrong with data on disk: training goes on and names it, or stops with one line; it never hangs."""
from __future__ import annotations

import io
import os
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twinview.api import train
from twinview.cli import main
from twinview.cli.train import summary
from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import read_image
from twinview.data.formats import container, decode
from twinview.errors import DataError

Write = Callable[[str, Mapping[str, bytes]], Path]


def encoded(pixels: Any, kind: str = "JPEG", mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, kind, **options)
    return file.getvalue()


def noise(seed: int, height: int = 40, width: int = 48) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 8
    return encoded(noise(5), exif=exif)


def png_header(height: int, width: int, depth: int = 8) -> bytes:
    """A PNG that states a size, and holds next to nothing."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, 2, 0, 0, 0])
    packed = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [(len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (head, packed, b"IEND")]
    return container.PNG + b"".join(chunks)


def jpeg_header(height: int, width: int) -> bytes:
    """A JPEG whose frame header states another size than it has."""
    data = bytearray(encoded(noise(0)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


READ = {  # data that training reads
    "cmyk.jpg": encoded(noise(1), mode="CMYK"),
    "grey.jpg": encoded(noise(2), mode="L"),
    "palette.png": encoded(noise(3), "PNG", "P"),
    "transparent.png": encoded(noise(4), "PNG", "RGBA"),
    "turned.jpg": turned(),
    "pixel.png": encoded(noise(6, 1, 1), "PNG"),
    "line.jpg": encoded(noise(7, 1, 300)),
    "long.jpg": encoded(np.zeros((20_000, 8, 3), np.uint8)),
    "wide.png": encoded(np.zeros((8, 20_000, 3), np.uint8), "PNG"),
    "png-inside.jpg": encoded(noise(8), "PNG"),
    "jpeg-inside.png": encoded(noise(9)),
    "gif-inside.jpg": encoded(noise(10), "GIF", "P"),
}
BAD = {  # data that it does not, and why
    "cut.jpg": (encoded(noise(1))[:-200], "image file is truncated"),
    "cut.png": (encoded(noise(1), "PNG")[:-900], "cannot be decoded: "),
    "empty.jpg": (b"", "is an empty file"),
    "page.jpg": (b"<!DOCTYPE html>", "is no image; it begins with b'<!DOCTYPE ht'"),
    "deep.png": (encoded(np.full((9, 9), 40_000, np.uint16), "PNG"), "has 16 bits a channel; [data] white = 65535, or the value that is full scale, has such images read"),
    "deep.jpg": (encoded(np.full((9, 9), 40_000, np.uint16), "TIFF"), "has 16 bits a channel"),
    "bomb.png": (png_header(60_000, 60_000), "has 60000x60000 pixels; images have at most 89478485"),
    "bomb.jpg": (jpeg_header(65_000, 65_000), "has 65000x65000 pixels; images have at most 89478485"),
    "square.jpg": (jpeg_header(20_000, 20_000), "has 20000x20000 pixels; images have at most 89478485"),
    "unreal.jpg": (png_header(2**31 - 1, 2**31 - 1), "pixels; images have at most 89478485"),
    "short.png": (png_header(9_000, 9_000), "cannot be decoded"),
}


@pytest.mark.parametrize("name", READ)
def test_odd_images_are_read(name: str) -> None:
    found = decode.image(READ[name])
    size, channels, _ = decode.image_header(READ[name])
    assert found.shape == (3, *size) and found.dtype == torch.uint8 and channels == (1 if name == "grey.jpg" else 3)


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_quickly_and_in_little_memory(name: str, recwarn: pytest.WarningsRecorder) -> None:
    data, said = BAD[name]
    started = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        decode.image(data)
    assert "\n" not in str(caught.value) and time.monotonic() - started < 3 and not [w for w in recwarn if w.category is Image.DecompressionBombWarning]


def test_training_goes_on_and_names_them(toy: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {f"good{n:02}.jpg": encoded(noise(20 + n)) for n in range(9)}
    shard = write("mixed.tar", good | {f"bad-{n}/{name}": data for n, (name, (data, _)) in enumerate(BAD.items())} | {f"odd/{k}": v for k, v in READ.items()})
    table = {**toy, "data": {"shards": str(shard), "workers": 1, "bad_samples": len(BAD)}, "run": {**toy["run"], "batch_size": 32, "steps": 2, "device": "cpu"}}
    result = train(table, run=tmp_path / "run")
    named = {re.search(r"sample '(.*?)'", one).group(1) for one in result.bad_samples}  # type: ignore[union-attr]
    assert result.step == 2 and named == {f"bad-{n}/{name.rpartition('.')[0]}" for n, name in enumerate(BAD)}
    lines = summary(result)
    assert f"bad samples {len(BAD)}; others stood in for them" in lines and sum("bad-" in line for line in lines) == 10
    capsys.readouterr()
    with pytest.raises(DataError, match=rf"\[data\] bad_samples lets {len(BAD) - 1} pass, and this is one more\.") as caught:
        train(table, f"data.bad_samples={len(BAD) - 1}", run=tmp_path / "another")
    assert "\n" not in str(caught.value)


def test_names_that_are_no_text(toy: dict[str, Any], tmp_path: Path) -> None:
    """Keys in any encoding go through index, workers and batches."""
    path = tmp_path / "latin.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for n in range(6):
            info = tarfile.TarInfo(f"café {n}.jpg")
            data = encoded(noise(n))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert open_shards(str(path)).key(2) == "caf\udce9 2"
    table = {**toy, "data": {"shards": str(path), "workers": 1}, "run": {**toy["run"], "steps": 2, "device": "cpu"}}
    assert train(table, run=tmp_path / "run").step == 2
    assert main(["shards", "check", str(path)]) == 0 and main(["shards", "stat", str(path), "--out", str(tmp_path / "sheet.png")]) == 0


def test_a_name_that_leads_out_of_the_folder_is_a_name(write: Write, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shards = open_shards(str(write("in/evil.tar", {"../../escaped.jpg": encoded(noise(0)), "/tmp/rooted.jpg": encoded(noise(1))})))
    assert [shards.key(i) for i in range(2)] == ["../../escaped", "/tmp/rooted"] and read_image(shards, 0).shape == (3, 40, 48)
    assert sorted(os.listdir(tmp_path)) == ["in"] and not Path("/tmp/rooted.jpg").exists()


def test_a_shard_that_is_written_over_while_it_is_read(write: Write) -> None:
    path = write("x.tar", {f"{n}.jpg": encoded(noise(n)) for n in range(4)})
    shards = open_shards(str(path))
    read_image(shards, 0)
    with path.open("r+b") as file:  # as many bytes, others
        file.seek(1000)
        file.write(os.urandom(100))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"x\.tar: has changed since it was opened \(\d+ bytes, and \d+ when it was indexed\)\. Leave shards alone"):
        read_image(shards, 1)
    fresh = open_shards(str(path))
    path.unlink()
    with pytest.raises(DataError, match=r"x\.tar: No such file"):
        read_image(fresh, 1)


def test_a_shard_that_is_missing_or_cut_stops_before_the_first_step(toy: dict[str, Any], write: Write, tmp_path: Path) -> None:
    path = write("x-000.tar", {f"{n}.jpg": encoded(noise(n)) for n in range(8)})
    run = {"run": {**toy["run"], "device": "cpu"}}
    with pytest.raises(DataError, match=r"x-001\.tar: there is no such shard\. The nearest is .*x-000\.tar\."):
        train({**toy, **run, "data": {"shards": str(tmp_path / "x-{000..001}.tar"), "workers": 0}}, run=tmp_path / "run")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"x-000\.tar, offset \d+: .*It is cut off: copy it anew\.$"):
        train({**toy, **run, "data": {"shards": str(path), "workers": 0}}, run=tmp_path / "run")
