"""The embedded scenes are drawn once, by processes of their own, into a folder that is whole or not there."""
from __future__ import annotations

import io
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinview.data.dataset.open import open_shards
from twinview.data.scenes import shards as embedded
from twinview.data.scenes.street import CLASSES, draw_scene
from twinview.errors import DataError


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINVIEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "SPLITS", {"train": (5, 0), "val": (2, 1000)})
    monkeypatch.setattr(embedded, "SIZE", (32, 48))
    monkeypatch.setattr(embedded, "SHARD_SIZE", 3)
    return tmp_path / "cache"


def test_scenes_are_drawn_on_first_use(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_shards("scenes:train")
    assert len(found) == 5 and len(found.paths) == 2 and found.fields == {"jpg", "seg.png"}
    assert [found.key(i) for i in range(5)] == [f"{n:07}" for n in range(5)]
    for i in range(5):
        image, labels = draw_scene(i, (32, 48))
        fields = found.read(i).fields
        assert np.array_equal(np.array(Image.open(io.BytesIO(fields["seg.png"]))), labels)
        assert np.abs(np.array(Image.open(io.BytesIO(fields["jpg"]))).astype(int) - image).mean() < 6
    manifest = json.loads((Path(str(found.paths[0])).parent / "manifest.json").read_text())
    assert manifest["classes"] == list(CLASSES) and manifest["images"] == manifest["labels"] == 5
    monkeypatch.setattr(embedded, "write_scenes", lambda *_, **__: pytest.fail("drawn twice"))
    assert open_shards("scenes:train").checksum == found.checksum
    assert {p.name.split("-")[-2] for p in small.iterdir()} == {"train"}


def test_another_drawing_is_another_folder(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = embedded.scenes("val")
    monkeypatch.setattr("twinview.data.scenes.street.VERSION", 10_000)
    assert embedded.scenes("val") != first and first.is_dir()


def test_two_ranks_at_once(small: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=lambda: os._exit(0 if len(open_shards("scenes:val")) == 2 else 1)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert sorted(p.suffix for p in small.iterdir()) == ["", ".lock"], "no unfinished folder stays"


def test_drawing_that_fails_leaves_nothing(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "SIZE", (4, 4))  # too small: the drawing process raises
    with pytest.raises(RuntimeError, match="a process that draws scenes ended early"):
        embedded.scenes("val")
    assert [p.suffix for p in small.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"the scenes cannot be kept there: .*\. Set TWINVIEW_CACHE to another folder\."):
        embedded.scenes("val")


def test_the_number_of_processes_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for processes in (1, 3):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=processes: set(range(n)))
        embedded.write_scenes(tmp_path / f"{processes}", count=4, size=(32, 48))
        digests.append((tmp_path / f"{processes}" / "scenes-000000.tar").read_bytes())
    assert digests[0] == digests[1]
