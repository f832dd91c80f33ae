"""Shards by path, number and key."""
from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from twinview.data.dataset import shards as module
from twinview.data.dataset.open import expand, open_shards
from twinview.data.dataset.shards import Shards
from twinview.data.rng import key_hash
from twinview.errors import DataError

Write = Callable[[str, Mapping[str, bytes]], Path]


def names(found: Shards) -> list[str]:
    return [path.name for path in found.paths]


def test_samples_by_number(shards: list[str]) -> None:
    found = open_shards(shards)
    assert len(found) == 61 and list(found.starts) == [0, 7, 40, 61] and found.fields == {"png", "cls", "seg.png"} and found.classes == 5
    for i in (0, 6, 7, 39, 40, 60):
        sample = found.read(i)
        assert sample.key == found.key(i) == f"{i:03}" and sample.fields["cls"] == str(i % 5).encode() and found.key_hash(i) == key_hash(f"{i:03}")
        assert set(sample.fields) == set(found.names(i)) == {"png", "cls", "seg.png"}
    assert set(found.read(3, only=("cls",)).fields) == {"cls"} and found.path(39).name == "b.tar"


def test_what_a_path_may_be(shards: list[str], write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shards[0]).parent
    assert names(open_shards(str(folder))) == names(open_shards(str(folder / "*.tar"))) == ["a.tar", "b.tar", "c.tar"]
    assert names(open_shards(str(folder / "{c,a}.tar"))) == ["c.tar", "a.tar"]
    for n in range(8, 12):
        write(f"s-{n:03}.tar", {f"s{n}.jpg": b"1"})
    assert names(open_shards([str(folder / "s-{008..011}.tar"), shards[0]])) == ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar", "a.tar"]
    monkeypatch.chdir(folder)
    assert names(open_shards("a.tar")) == ["a.tar"]


def test_braces() -> None:
    assert list(expand("a-{8..11}")) == ["a-8", "a-9", "a-10", "a-11"]
    assert list(expand("{a,b}-{00..01}")) == ["a-00", "a-01", "b-00", "b-01"]
    assert list(expand("plain{x}")) == ["plain{x}"]
    with pytest.raises(DataError, match=re.escape("3..1 counts down. Write {1..3}")):
        list(expand("a-{3..1}"))


def test_what_a_path_may_not_be(shards: list[str], tmp_path: Path) -> None:
    for spec, said in (
        ("pipe:curl http://x/a.tar", "runs a program. Allow it in a recipe of your own"),
        (str(tmp_path / "{a,bb}.tar"), f"{tmp_path / 'bb.tar'}: there is no such shard. The nearest is {tmp_path / 'b.tar'}."),
        (str(tmp_path / "no" / "a.tar"), f"There is no folder {tmp_path / 'no'} either."),
        ("scenes:vla", "scenes:vla: there is no such split. Did you mean 'val'?"),
    ):
        with pytest.raises(DataError, match=re.escape(said)) as caught:
            open_shards(spec)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no \.tar"):
        open_shards(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="names no shard"):
        open_shards([])


def test_a_shard_that_its_manifest_lists_is_missed(shards: list[str], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": [{"name": n} for n in ("a.tar", "b.tar", "c.tar", "d.tar")]}))
    with pytest.raises(DataError, match=r"d\.tar: is missing \(1 of 4 shards"):
        open_shards(str(tmp_path))
    (tmp_path / "manifest.json").write_text("[]")
    assert len(open_shards(str(tmp_path)).paths) == 3


def test_keys_are_unique_over_all_shards(shards: list[str], write: Write) -> None:
    twin = write("twin.tar", {"x.jpg": b"1", "013.jpg": b"1"})
    with pytest.raises(DataError, match=re.escape(f"{shards[1]} and {twin}: both have a sample '013'.")):
        open_shards([*shards, str(twin)])
    with pytest.raises(DataError, match="both have a sample"):
        open_shards([shards[0], shards[0]])


def test_keys_with_equal_hashes_are_no_twins(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinview.data.store.index.key_hash", lambda key: 7)
    assert len(open_shards(shards[0], rebuild=True)) == 7


def test_the_checksum_is_of_the_content(shards: list[str], tmp_path: Path, write: Write) -> None:
    first = open_shards(shards).checksum
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert open_shards(str(tmp_path / "copy")).checksum == first
    assert open_shards(shards[::-1]).checksum != first and open_shards(shards[:2]).checksum != first
    assert open_shards(str(write("x.tar", {"a.jpg": b"1"}))).checksum != open_shards(str(write("y.tar", {"a.png": b"1"}))).checksum


def test_few_files_are_open_at_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_FILES", 2)
    found = open_shards([str(write(f"{n}.tar", {f"{n}.jpg": bytes([n])})) for n in range(5)])
    before = len(os.listdir("/proc/self/fd"))
    for i in (0, 1, 2, 3, 4, 2, 0, 4):
        assert found.read(i).fields["jpg"] == bytes([i])
    assert len(os.listdir("/proc/self/fd")) == before + 2
    found.close()
    assert len(os.listdir("/proc/self/fd")) == before and found.read(1).key == "1"


def test_it_goes_to_other_processes(shards: list[str]) -> None:
    found = open_shards(shards)
    expected = [found.read(i) for i in range(61)]
    copy = pickle.loads(pickle.dumps(found))
    assert [copy.read(i) for i in range(61)] == expected and copy.checksum == found.checksum
    children = []
    for child in range(3):  # all read through descriptors that they share, each at its own places
        pid = os.fork()
        if pid == 0:
            order = [(i * 7 + child * 20) % 61 for i in range(300)]
            os._exit(0 if all(found.read(i) == expected[i] for i in order) else 1)
        children.append(pid)
    assert [found.read(i) for i in range(61)] == expected
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]


def test_a_shard_that_changes_under_the_reader_is_noticed(shards: list[str]) -> None:
    found = open_shards(shards)
    os.truncate(shards[0], 3000)
    with pytest.raises(DataError, match=r"a\.tar: has changed since it was opened \(3000 bytes, and \d+ when"):
        found.read(6)
    os.unlink(shards[1])
    with pytest.raises(DataError, match=r"b\.tar: No such file"):
        found.read(20)
