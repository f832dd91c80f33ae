"""One index on disk for many shards: the samples, the checksum and the refusals of indexes in memory, fresh as they are, shared by all processes."""
from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from twinview.data.dataset.open import open_data, open_shards
from twinview.data.dataset.shards import Shards
from twinview.data.store import catalog, index, twins
from twinview.errors import DataError
from twinview.recipe.tables import Data, Source

Write = Callable[[str, Mapping[str, bytes]], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINVIEW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards are many."""
    monkeypatch.setattr(catalog, "SHARDS", 2)


@pytest.fixture
def paths(write: Write) -> list[str]:
    """Shards with other fields, an empty class and keys of several lengths."""
    a = write("a.tar", {f"{n}.{field}": b"%d" % n for n in range(5) for field in ("jpg", "cls")})
    b = write("b.tar", {f"street/{n:04}.png": bytes(n) for n in range(7)})
    return [str(path) for path in (a, b, write("c.tar", {"last.cls": b"9", "last.jpg": b"x"}))]


def whole(shards: Shards) -> list[object]:
    return [(shards.key(i), shards.key_hash(i), shards.path(i), shards.names(i), shards.read(i)) for i in range(len(shards))]


def test_a_catalog_is_its_indexes(paths: list[str], monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    plain = open_shards(paths)
    assert isinstance(plain.indexes, tuple) and not cache.exists()
    monkeypatch.setattr(catalog, "SHARDS", 2)
    for found in (open_shards(paths), open_shards(paths), pickle.loads(pickle.dumps(open_shards(paths)))):
        assert isinstance(found.indexes, catalog.Catalog) and len(found.indexes) == 3
        assert whole(found) == whole(plain) and found.checksum == plain.checksum and found.starts.tolist() == plain.starts.tolist()
        assert found.classes == plain.classes and found.fields == plain.fields
        assert np.array_equal(np.concatenate(found.hashes), np.concatenate(plain.hashes))
    assert len(pickle.dumps(found)) < 1500 + sum(map(len, paths)), "the name of its folder, not what is in it"


def test_it_is_made_once_and_anew_when_a_shard_changes(paths: list[str], many: None, write: Write, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_shards(paths)
    (kept,) = (cache / "catalogs").glob("*-*")
    with monkeypatch.context() as patched:
        patched.setattr(index, "read", lambda path: pytest.fail("reads no index of a shard"))
        assert open_shards(paths).checksum == first.checksum
    write("b.tar", {"other.png": b"1"})
    second = open_shards(paths)
    (fresh,) = (cache / "catalogs").glob("*-*")
    assert fresh != kept and second.checksum != first.checksum and [second.key(i) for i in (4, 5, 6)] == ["4", "other", "last"]
    assert first.key(6) == "street/0001", "whoever maps the old one keeps it"
    with pytest.raises(DataError, match="b.tar: has changed since it was opened"):
        first.read(6)
    assert open_shards(paths, rebuild=True).checksum == second.checksum


@pytest.mark.parametrize("name", ["meta.json", "shards.npz", "hashes", "offsets"])
def test_a_damaged_one_is_made_anew(paths: list[str], many: None, cache: Path, name: str) -> None:
    expected = open_shards(paths).checksum
    (kept,) = (cache / "catalogs").glob("*-*")
    os.truncate(kept / name, (kept / name).stat().st_size - 3)
    assert open_shards(paths).checksum == expected and catalog.find(kept) is not None


def test_many_samples_make_a_catalog_too(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for samples, kind in ((13, tuple), (12, catalog.Catalog)):
        monkeypatch.setattr(catalog, "SAMPLES", samples)
        for path in paths:
            index.sidecar(Path(path)).unlink(missing_ok=True)
        assert isinstance(open_shards(paths).indexes, kind)


def test_without_a_place_to_keep_it_indexes_are_in_memory(paths: list[str], many: None, cache: Path) -> None:
    cache.write_text("no folder")
    assert isinstance(open_shards(paths).indexes, tuple) and len(open_shards(paths)) == 13


def test_keys_that_stand_twice_are_refused_and_nothing_is_kept(paths: list[str], many: None, write: Write, cache: Path) -> None:
    more = [*paths, str(write("d.tar", {"street/0003.png": b""}))]
    with pytest.raises(DataError, match=r"b.tar and .*d.tar: both have a sample 'street/0003'. Keys name samples: pack anew"):
        open_shards(more)
    assert not list((cache / "catalogs").glob("*-*"))
    with pytest.raises(DataError, match="both have a sample"):
        open_shards([*paths, paths[0]])


def test_sources_of_catalogs_make_the_same_mixture(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mixes = [
        Data(shards=paths, held_out=0.3),
        Data(source=[Source(shards=paths[:2], name="x", weight=1), Source(shards=paths, name="y", weight=2, subset=9)]),
        Data(source=[Source(shards=paths, name="x", subset=0.5)], held_out=2),
    ]
    plain = [open_data(data).numbered() for data in mixes]
    monkeypatch.setattr(catalog, "SHARDS", 1)
    for data, expected in zip(mixes, plain):
        found = open_data(data).numbered()
        assert found.checksum == expected.checksum and [found.read(i) for i in range(len(found))] == [expected.read(i) for i in range(len(expected))]
        numbers = np.arange(len(found))
        assert np.array_equal(found.shards_of(numbers), expected.shards_of(numbers))


def test_another_process_that_builds_is_waited_for(paths: list[str], many: None, cache: Path) -> None:
    code = f"from twinview.data.dataset.open import open_shards; print(open_shards({paths!r}).checksum)"
    patch = "from twinview.data.store import catalog; catalog.SHARDS = 2; "
    both = [subprocess.Popen([sys.executable, "-c", patch + code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = {process.communicate()[0] for process in both}
    assert found == {open_shards(paths).checksum + "\n"} and len(list((cache / "catalogs").glob("*-*"))) == 1


@pytest.mark.parametrize("run", [3, 10, 1 << 24])
def test_twins_are_found_in_memory_and_on_disk(run: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(-(2**63), 2**63 - 1, 50)
    for one, other in ((3, 7), (12, 30), (30, 49)):
        hashes[other] = hashes[one]
    cut = [hashes[:5], hashes[5:5], hashes[5:33], hashes[33:]]
    assert list(twins.twins(cut, run)) == [(3, 7), (12, 30), (12, 49)]
    assert list(twins.twins([], run)) == [] and list(twins.twins([hashes[:3]], run)) == []
