"""Work split over machines: parts that are packed or checked one by one, joined to what a single process makes, byte for byte."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinview.cli import main
from twinview.data.dataset.open import open_shards
from twinview.data.prepare.join import join_shards
from twinview.data.prepare.pack import pack
from twinview.data.store import index
from twinview.data.writing.parts import Part
from twinview.data.writing.prepare_sample import Recode
from twinview.data.writing.writer import Options
from twinview.errors import DataError

IMAGES, BAD = 43, (3, 4, 5, 6, 17, 42)  # of which four fill a shard's places
OPTIONS: dict[str, Any] = {"shard_size": 4, "bad_samples": 10}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(IMAGES):
        path = folder / f"{n:03}.png"
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (8 + n % 5, 9, 3), np.uint8)).save(path)
        if n in BAD:
            path.write_bytes(b"no image")
    return folder


def bytes_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if not p.name.endswith(index.SUFFIX)}


def packed(images: Path, out: Path, part: Part | None = None, **options: Any) -> Any:
    return pack("images", str(images), out, Options(**{**OPTIONS, **options}), part)


@pytest.mark.parametrize("parts", [1, 3, 20])
@pytest.mark.parametrize("options", [{}, {"max_bytes": 700, "recode": Recode(shorter_side=6)}])
def test_joined_parts_are_one_packing(images: Path, tmp_path: Path, parts: int, options: dict[str, Any]) -> None:
    whole, out = tmp_path / "whole" / "x", tmp_path / "parts" / "x"
    made = [packed(images, target, part, **options) for target, part in ((whole, None), *((out, Part(k, parts)) for k in range(parts, 0, -1)))]
    assert not out.exists() and sum(one.images for one in made[1:]) == made[0].images == IMAGES - len(BAD)
    found = join_shards(out)
    assert bytes_of(out) == bytes_of(whole) and (found.images, found.shards, found.left_out) == (made[0].images, made[0].shards, len(BAD))
    assert [path.name for path in out.parent.iterdir()] == ["x"], "nothing else is left"
    before = {path: path.stat().st_mtime_ns for path in out.glob(f"*{index.SUFFIX}")}
    assert open_shards(str(out)).checksum == open_shards(str(whole)).checksum
    assert len(before) == found.shards and before == {path: path.stat().st_mtime_ns for path in before}, "indexes have come along"


def test_a_part_that_is_asked_for_again_and_a_join_that_was_killed(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = tmp_path / "whole" / "x", tmp_path / "x"
    packed(images, whole)
    for k in (1, 2):
        packed(images, out, Part(k, 2))
    again = packed(images, out, Part(2, 2))
    assert again.kept == again.images > 0 and "part 2/2" in again.text()
    with pytest.raises(DataError, match="was packed with another shorter_side"):
        packed(images, out, Part(2, 2), recode=Recode(shorter_side=5))
    rename, calls = os.rename, list[int]()

    def killed(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        rename(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            join_shards(out)
    assert not out.exists()
    join_shards(out)
    assert bytes_of(out) == bytes_of(whole) and len(open_shards(str(out))) == IMAGES - len(BAD)
    with pytest.raises(DataError, match="x: is there already"):
        packed(images, out, Part(1, 2))


def test_parts_that_do_not_belong_together_are_refused(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    with pytest.raises(DataError, match="there are no parts of it. Pack them with --part 1/N to N/N"):
        join_shards(out)
    packed(images, out, Part(2, 3))
    with pytest.raises(DataError, match="its parts 1/3, 3/3 are not packed yet"):
        join_shards(out)
    packed(images, out, Part(1, 3))
    packed(images, out, Part(3, 3), recode=Recode(shorter_side=5))
    with pytest.raises(DataError, match="holds parts of several packings"):
        join_shards(out)


def test_on_the_command_line(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in BAD:
        (images / f"{n:03}.png").unlink()
    out, whole = tmp_path / "a" / "x", tmp_path / "b" / "x"
    for k in (1, 2):
        assert main(["shards", "pack", "images", str(images), str(out), "--shard-size", "4", "--part", f"{k}/2"]) == 0
        assert f"part {k}/2: `twinview shards join` makes one folder" in capsys.readouterr().out
    assert main(["shards", "pack", "images", str(images), str(whole), "--shard-size", "4"]) == 0 and main(["shards", "join", str(out)]) == 0
    assert bytes_of(out) == bytes_of(whole)
    for path in out.glob(f"*{index.SUFFIX}"):
        path.unlink()
    for k in range(1, 4):
        assert main(["shards", "index", str(out), "--part", f"{k}/3"]) == 0
    assert len(list(out.glob(f"*{index.SUFFIX}"))) == len(list(out.glob("*.tar")))
    capsys.readouterr()
    for wrong in ("0/4", "5/4", "1", "a/b"):
        assert main(["shards", "index", str(out), "--part", wrong]) == 2
        assert "wants which part of how many, from 1/64 to 64/64" in capsys.readouterr().err


def test_a_check_in_parts_says_what_a_check_says(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, found = tmp_path / "x", tmp_path / "found"
    packed(images, out)
    tars = sorted(out.glob("*.tar"))
    tars[2].write_bytes(tars[0].read_bytes())  # keys that stand twice, and another sum
    tars[5].write_bytes(tars[5].read_bytes()[:1300])
    (out / "more.tar").write_bytes(tars[1].read_bytes())
    assert main(["shards", "check", str(out)]) == 2
    expected = capsys.readouterr()
    assert "stands already in" in expected.out and "cut off" in expected.out and "does not name it" in expected.out
    assert main(["shards", "check", str(out), "--part", "1/3"]) == 2 and "go together" in capsys.readouterr().err
    codes = [main(["shards", "check", str(out), "--part", f"{k}/3", "--out", str(found)]) for k in (1, 3)]
    assert codes == [2, 0]
    assert main(["shards", "join", str(found)]) == 2 and "the parts 2/3 are not checked yet" in capsys.readouterr().err
    main(["shards", "check", str(out), "--part", "2/3", "--out", str(found)])
    capsys.readouterr()
    assert main(["shards", "join", str(found)]) == 2
    joined = capsys.readouterr()
    assert joined.out == expected.out and joined.err.splitlines()[-1] == expected.err.splitlines()[-1]


def test_a_damaged_part_is_one_line(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    packed(images, out, Part(1, 2))
    (place,) = tmp_path.glob(".x.parts/*/part.json")
    place.write_text("{")
    for again in (lambda: join_shards(out), lambda: packed(images, out, Part(1, 2))):
        with pytest.raises(DataError, match=r"part.json: is no part, or a damaged one. Remove its folder"):
            again()
