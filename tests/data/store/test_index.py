"""The index finds what WebDataset finds, and a shard that is damaged is refused with its name, the offset and the reason."""
from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinview.data.rng import key_hash
from twinview.data.store import index
from twinview.errors import DataError

Write = Callable[[str, Mapping[str, bytes]], Path]
FILES = {f"folder/{n:03}.{field}": bytes([n]) * (n * 100) for n in range(12) for field in ("jpg", "seg.PNG")}


def contents(path: Path, found: index.Index) -> dict[str, dict[str, bytes]]:
    data = path.read_bytes()
    return {found.key(i): {field: data[at : at + size] for field, at, size in found.files(i)} for i in range(len(found))}


def test_it_finds_every_file(write: Write) -> None:
    path = write("x.tar", FILES)
    found = index.load(path)
    assert contents(path, found) == {f"folder/{n:03}": {"jpg": bytes([n]) * (n * 100), "seg.png": bytes([n]) * (n * 100)} for n in range(12)}
    assert list(found.hashes) == [key_hash(f"folder/{n:03}") for n in range(12)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_and_long_names(tmp_path: Path, form: int) -> None:
    path = tmp_path / "x.tar"
    names = ["./a/b.jpg", "straße/ü.jpg", "d" * 90 + "/" + "e" * 80 + ".jpg"]
    names += [] if form == tarfile.USTAR_FORMAT else ["f" * 300 + "/g.jpg", "h.jpg"]
    with tarfile.open(path, "w", format=form) as tar:
        tar.addfile(tarfile.TarInfo("empty/"), None)
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 5, 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(b"12345"))
    assert contents(path, index.load(path)) == {name.removesuffix(".jpg"): {"jpg": b"12345"} for name in names}


def test_names_are_split_as_webdataset_splits_them() -> None:
    from webdataset.tariterators import base_plus_ext

    for name in ("a.jpg", "a/b.c.JPG", "a.d/b.jpg", "./a.jpg", "a.b/c.tar.gz", "/a.jpg"):
        key, field = base_plus_ext(name)
        assert index.split(name) == (key, field.lower())
    for name in ("README", "a/.hidden", "a.b/README", "._a.jpg", "__meta__.json"):
        assert index.split(name)[1] == ""


def test_webdataset_reads_the_same_samples(write: Write) -> None:
    import webdataset

    path = write("x.tar", FILES)
    read = {s["__key__"]: {k: v for k, v in s.items() if not k.startswith("_")} for s in webdataset.WebDataset(str(path), shardshuffle=False)}
    assert contents(path, index.load(path)) == read


def test_the_side_car_is_used_and_a_stale_one_is_built_anew(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("x.tar", FILES)
    assert index.read(path) is None
    built = index.load(path)
    assert path.with_name("x.tar.index.npz").is_file() and len(list(path.parent.iterdir())) == 2, "and no temporary file stays"
    monkeypatch.setattr(index, "scan", lambda path: pytest.fail("a fresh index is not built again"))
    read = index.load(path)
    assert read.fields == built.fields and read.classes == built.classes
    assert all(np.array_equal(getattr(read, name), getattr(built, name)) for name in index.ARRAYS)
    monkeypatch.undo()

    write("x.tar", {"new.jpg": b"1"})
    assert contents(path, index.load(path)) == {"new": {"jpg": b"1"}}
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert index.read(path) is None
    index.load(path)
    index.sidecar(path).write_bytes(index.sidecar(path).read_bytes()[:100])
    assert len(index.load(path)) == 1


def test_a_folder_that_cannot_be_written_keeps_the_index_in_memory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("x.tar", FILES)

    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", denied)  # root may write anywhere
    assert len(index.load(path)) == 12 and not index.sidecar(path).exists()


def test_classes_are_counted_in_the_index(write: Write) -> None:
    assert index.load(write("a.tar", {"0.cls": b"3\n", "1.cls": b"11"})).classes == 12
    assert index.load(write("d.tar", {"0.cls": b"3\n", "1.cls": b"11", "2.jpg": b""})).classes == 0  # training that needs no labels goes on
    assert index.load(write("b.tar", {"0.cls": b"3", "1.cls": b"dog"})).classes == 0
    assert index.load(write("c.tar", {"0.jpg": b"3"})).classes == 0


def damaged(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def header_of(path: Path, name: str) -> int:
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def test_damage_is_refused_in_one_line(write: Write) -> None:
    def refused(path: Path, said: str) -> None:
        with pytest.raises(DataError, match=re.escape(said)) as caught:
            index.load(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        assert not index.sidecar(path).exists()

    path = write("garbage.tar", FILES)
    at = header_of(path, "folder/006.jpg")
    damaged(path, at, os.urandom(512))
    refused(path, f"offset {at}: is no header")

    path = write("flipped.tar", FILES)
    damaged(path, at + 3, b"?")
    refused(path, f"offset {at}: is no header")

    path = write("zeros.tar", FILES)  # tarfile would take the hole for the end
    damaged(path, at, bytes(512))
    refused(path, f"offset {at}: the archive ends here, and data follows at {at + 512}")

    path = write("cut.tar", FILES)
    os.truncate(path, at + 512 + 100)
    refused(path, f"offset {at}: 'folder/006.jpg' has 600 bytes, the file ends after 100")

    path = write("cut-between.tar", FILES)
    os.truncate(path, at)
    refused(path, f"offset {at}: the file ends without the mark that ends a tar")

    path = write("cut-at-the-end.tar", FILES)
    end = header_of(path, "folder/011.seg.PNG") + 512 + 1536
    os.truncate(path, end + 512)
    refused(path, f"offset {end}: the file ends without the mark")
    os.truncate(path, end + 1024)
    assert len(index.load(path)) == 12

    path = write("joined.tar", {"a.jpg": b"1"})
    path.write_bytes(path.read_bytes() + write("other.tar", {"b.jpg": b"1"}).read_bytes())
    refused(path, "the archive ends here, and data follows")

    path = write("hole.tar", {"a.jpg": b"1"})
    os.truncate(path, 1 << 22)
    assert len(index.load(path)) == 1, "padding, as of a tape, is read"
    index.sidecar(path).unlink()
    os.truncate(path, 1 << 42)  # of which the disk holds nothing
    refused(path, f"more than {1 << 26} zero bytes follow the end of the archive: a hole")

    path = write("page.tar", {})
    path.write_bytes(b"<!DOCTYPE html><html>404</html>" * 40)
    refused(path, "offset 0: is no tar; it begins with b'<!DOCTYPE html><'")
    path.write_bytes(b"")
    refused(path, "the file is empty")
    path.write_bytes(b"\x1f\x8b" + bytes(600))
    refused(path, "is compressed")
    refused(write("nothing.tar", {}), "holds no samples")
    refused(write("nothing.tar", {"README": b""}), "holds no samples")
    refused(path.with_name("missing.tar"), "No such file")
    refused(path.parent, "is a folder, and not a regular file")


def test_a_negative_size_does_not_run_in_circles(write: Write) -> None:
    path = write("x.tar", {"a.jpg": b"1", "b.jpg": b"2"})
    block = bytearray(path.read_bytes()[1024:1536])
    block[124:136] = b"-0000002000\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    damaged(path, 1024, bytes(block))
    with pytest.raises(DataError, match="offset 1024: is no header"):
        index.load(path)


def test_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "b.jpg"):
            tar.add(tmp_path / name, name)
    with pytest.raises(DataError, match=r"offset \d+: 'b.jpg' is a link, not a plain file. Pack with `tar --dereference`"):
        index.load(path)


def test_a_key_stands_once_and_in_one_place(write: Write) -> None:
    with pytest.raises(DataError, match=r"x.tar, offset 2048: the key 'a' stands already at offset 0"):
        index.load(write("x.tar", {"a.jpg": b"1", "b.jpg": b"1", "a.cls": b"1"}))
    with pytest.raises(DataError, match=r"offset 1024: the sample 'a' has a second file 'jpg'"):
        index.load(write("x.tar", {"a.jpg": b"1", "a.JPG": b"1"}))
