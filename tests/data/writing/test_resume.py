"""A packing that is killed goes on behind its finished shards, and the bytes are those of one that never was."""
from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinview.data.dataset.open import open_shards
from twinview.data.prepare.pack import pack_images
from twinview.data.store import index
from twinview.data.writing import prepare_sample
from twinview.data.writing import writer as module
from twinview.data.writing.prepare_sample import Recode
from twinview.errors import DataError

IMAGES = 40


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(IMAGES):
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (24, 32, 3), np.uint8)).save(folder / f"{n:03}.jpg")
    return folder


def sums(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.suffix in (".tar", ".json")}


def work(out: Path) -> Path:
    return out.with_name(f".{out.name}.packing")


@pytest.mark.parametrize("workers", [1, 3])
def test_killed_at_any_moment_and_run_again(images: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    options: dict[str, Any] = {"shard_size": 4, "name": "x", "recode": Recode(shorter_side=12)}
    pack_images(images, whole, **options)
    prepare = prepare_sample.prepare

    def slow(*args: Any) -> Any:
        time.sleep(0.02)
        return prepare(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare", slow)
        for wanted in (1, 3, 6):
            process = multiprocessing.get_context("fork").Process(target=pack_images, args=(images, out), kwargs={"workers": workers, **options})
            process.start()
            notes = work(out) / "notes.jsonl"
            while process.is_alive() and not (notes.is_file() and notes.read_bytes().count(b"\n") > wanted):
                time.sleep(0.005)
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL and not out.exists()
    found = pack_images(images, out, workers=workers, **options)
    assert sums(out) == sums(whole) and found.kept >= 24 and found.images == IMAGES and not work(out).exists()
    assert len(open_shards(str(out))) == IMAGES


def interrupted(images: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A packing that stops in its fourth shard."""
    real = module._write

    def stops(path: Path, group: Any) -> dict[str, Any]:
        if path.name.endswith("000003.tar"):
            path.write_bytes(b"half a shard")
            raise KeyboardInterrupt
        return real(path, group)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", stops)
        with pytest.raises(KeyboardInterrupt):
            pack_images(images, out, shard_size=4, **options)
    assert work(out).is_dir() and not out.exists()


def test_finished_shards_are_kept_and_not_made_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    interrupted(images, out, monkeypatch)
    with (work(out) / "notes.jsonl").open("a") as notes:
        notes.write('{"name": "a line that a kill has cu')
    monkeypatch.setattr("twinview.data.store.index.build", lambda path, real=index.build: pytest.fail(path.name) if path.name < "out-000003" else real(path))
    found = pack_images(images, out, shard_size=4)
    assert (found.kept, found.images, found.shards) == (12, 40, 10)
    assert "pack: goes on behind the 12 images of 3 finished shards\n" in capsys.readouterr().err
    monkeypatch.undo()
    pack_images(images, tmp_path / "whole", shard_size=4, name="out")
    assert sums(out) == sums(tmp_path / "whole")


def refused(said: str, images: Path, out: Path, **options: Any) -> None:
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        pack_images(images, out, **options)
    assert "\n" not in str(caught.value)


def test_another_job_does_not_go_on_with_it(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    interrupted(images, out, monkeypatch)
    said = f"{work(out)}: holds the beginning of a packing with another"
    refused(f"{said} shard_size. Write the same to go on, or remove it.", images, out, shard_size=5)
    refused(f"{said} quality.", images, out, shard_size=4, recode=Recode(quality=50))
    (images / "001.jpg").rename(images / "100.jpg")
    refused(f"{work(out)}: what was packed there is not what the source holds now. Remove it to start anew.", images, out, shard_size=4)
    (images / "100.jpg").rename(images / "001.jpg")
    assert pack_images(images, out, shard_size=4).kept == 12, "a refusal costs nothing"


def test_two_at_once(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work(out).mkdir()
    with (work(out) / "notes.jsonl").open("w") as notes:
        fcntl.flock(notes, fcntl.LOCK_EX)
        refused(f"{out}: another process is packing it.", images, out)
        assert work(out).is_dir(), "the other's folder"
    assert pack_images(images, out).images == IMAGES


def test_a_bad_sample_in_the_middle_costs_no_finished_shard(images: Path, tmp_path: Path) -> None:
    out, bad = tmp_path / "out", images / "021.jpg"
    bad.write_bytes(b"no image")
    refused(f"{bad}: is no image; it begins with b'no image'. Remove it, or put it right, and pack again: finished shards are kept.", images, out, shard_size=4)
    found = pack_images(images, out, shard_size=4, bad_samples=1)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (found.kept, found.images, found.left_out, manifest["left_out"]) == (20, 39, 1, [f"{bad}: is no image; it begins with b'no image'"])
    assert "1 bad samples left out, named in manifest.json" in found.text() and "021" not in {open_shards(str(out)).key(i) for i in range(39)}
    (images / "030.jpg").write_bytes(b"")
    refused(f"{images / '030.jpg'}: is an empty file. Remove it", images, tmp_path / "other", shard_size=4, bad_samples=1)


def test_nothing_but_bad_samples(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for n in range(3):
        (tmp_path / "images" / f"{n}.jpg").write_bytes(b"")
    refused("0.jpg: is an empty file. No sample behind it can be packed either.", tmp_path / "images", tmp_path / "out", bad_samples=9)
    assert os.listdir(tmp_path) == ["images"]


def test_notes_of_shards_that_have_gone_are_not_believed(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the move to OUT and the end of the working folder, and OUT taken away: all is packed again."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    pack_images(images, whole, shard_size=4, name="x")

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("twinview.data.writing.resume.shutil.rmtree", killed)
        pack_images(images, out, shard_size=4, name="x")
    assert out.is_dir() and work(out).is_dir()
    shutil.rmtree(out)
    pack_images(images, out, shard_size=4, name="x")
    assert sums(out) == sums(whole) and not work(out).exists()
