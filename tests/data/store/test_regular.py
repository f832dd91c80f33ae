"""What lies where it should not: links, pipes and devices among files, folders that anybody may write to, files that do not end."""
from __future__ import annotations

import io
import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinview import paths
from twinview.cli import main
from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import BadSample, read_image
from twinview.data.prepare.pack import pack
from twinview.data.remote import transport
from twinview.data.remote.cache import Cache
from twinview.data.remote.shard import Access, RemoteShard
from twinview.data.store import image_folder, index
from twinview.data.store.regular import check_stored
from twinview.data.writing.writer import Options
from twinview.errors import DataError, TwinviewError

Write = Callable[[str, Mapping[str, bytes]], Path]


@pytest.fixture
def published(server: Any, photographs: Path) -> str:
    """Shards with a manifest, on a server."""
    pack("images", str(photographs), server.folder / "published", Options(shard_size=4))
    return f"{server.url}/published"


def cached(server: Any) -> list[Path]:
    return sorted((server.folder / "cache/shards").glob("*.tar"))


# ---- the cache
@pytest.mark.parametrize("name", [".room", "x.tar.part"])
def test_a_link_in_the_cache_is_not_followed(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    cache = Cache(tmp_path / "cache")
    cache.make()
    (cache.folder / name).symlink_to(victim)
    with pytest.raises(DataError, match=r": is a link, where a file of the cache belongs\. Links are not followed there: remove it\.$"):
        cache.fetch("x.tar", 4, lambda file: None)
    assert victim.read_text() == "precious" and victim.stat().st_mtime_ns != 10**18


def test_a_link_in_place_of_a_shard_is_replaced_by_the_shard(server: Any, published: str) -> None:
    victim = server.folder / "victim"
    victim.write_text("precious")
    before = open_shards(published)
    first = cached(server)[0] if cached(server) else Path(before.paths[0].path)  # type: ignore[union-attr]
    first.unlink(missing_ok=True)
    first.symlink_to(victim)
    again = open_shards(published)
    assert all(read_image(again, i).shape for i in range(len(again)))
    assert victim.read_text() == "precious" and not first.is_symlink()


def test_a_link_in_place_of_the_scenes_lock_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twinview.data.scenes import shards as module

    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "scenes.lock").symlink_to(victim)
    with pytest.raises(DataError, match="the scenes cannot be kept there"), module._locked(tmp_path / "scenes"):
        pass
    assert victim.read_text() == "precious"


def test_a_cache_that_anybody_may_write_to_is_refused_and_a_new_one_is_private(tmp_path: Path, server: Any, published: str) -> None:
    old = os.umask(0)
    try:
        Cache(tmp_path / "made").make()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o755
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    with pytest.raises(DataError, match=r"open: anybody may write to this folder, and shards are read from it\. Name a folder within it with \[data\] cache, or run `chmod o-w "):
        open_shards(published, Access(Cache.at(str(tmp_path / "open"))))


def fetched(server: Any, published: str) -> list[Path]:
    shards = open_shards(published)
    for shard in shards.paths:
        assert isinstance(shard, RemoteShard) and shard.fetch()
    return cached(server)


def test_a_shard_that_was_cut_is_fetched_again(server: Any, published: str) -> None:
    first, *_ = fetched(server, published)
    os.truncate(first, first.stat().st_size // 2)
    asked = sum(server.asked.values())
    again = open_shards(published)
    assert all(read_image(again, i).shape for i in range(len(again))) and sum(server.asked.values()) > asked


def test_a_checksum_of_the_manifest_is_looked_at_once(server: Any, published: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    digest, looked = hashlib.file_digest, list[str]()

    def noted(file: Any, name: str) -> Any:
        looked.append(str(file.name))
        return digest(file, name)

    files = fetched(server, published)
    monkeypatch.setattr(hashlib, "file_digest", noted)
    open_shards(published)
    assert not looked, "each was checked when it was fetched"
    for path in files:
        path.with_name(path.name + ".checked").unlink()  # put there by other means, such as rsync
    open_shards(published)
    open_shards(published)
    assert len(looked) == len(files)
    damaged = files[1]
    damaged.with_name(damaged.name + ".checked").unlink()
    with damaged.open("r+b") as file:
        file.seek(700)
        file.write(b"????")
    again = open_shards(published)
    assert all(read_image(again, i).shape for i in range(len(again)))


def unwritable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """What a read-only file system answers, also to root."""
    real = os.open

    def refused(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if str(path).startswith(str(folder)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, flags, *rest, **named)

    def never(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(os, "utime", never)
    monkeypatch.setattr("tempfile._os.open", refused)


def test_a_cache_that_cannot_be_written_is_used(server: Any, published: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched(server, published)
    for path in (server.folder / "cache/shards").glob("*.npz"):
        path.unlink()
    unwritable(monkeypatch, server.folder / "cache")
    shards = open_shards(published)
    assert len(shards) == 12 and all(read_image(shards, i).shape for i in range(12))


# ---- homes
def test_without_a_home_what_is_kept_lies_in_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TWINVIEW_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where the user has no entry
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    paths._private.cache_clear()
    found = paths.cache()
    assert found.parent == tmp_path and stat.S_IMODE(found.stat().st_mode) == 0o700 and paths.cache() == found
    with pytest.raises(TwinviewError, match=r"^--run: ~/x: there is no such user, or no home is known\. Write the whole path\.$"):
        paths.expand("~/x", "--run")
    found.chmod(0o777)  # another user's trap
    paths._private.cache_clear()
    assert paths.cache() != found


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWINVIEW_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/.cache"))
    assert paths.cache() == tmp_path / "home/.cache/twinview"
    monkeypatch.setattr(os, "access", lambda *_: False)
    paths._private.cache_clear()
    assert paths.cache() != tmp_path / "home/.cache/twinview"
    (tmp_path / "home/.cache/twinview").mkdir(parents=True)
    assert paths.cache() == tmp_path / "home/.cache/twinview", "what is there is used"
    monkeypatch.setenv("TWINVIEW_CACHE", "~/kept")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache() == tmp_path / "kept"


def test_the_index_of_a_folder_that_cannot_be_kept_is_used(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("TWINVIEW_CACHE", str(tmp_path / "cache"))
    os.utime(photographs, (1, 1))
    monkeypatch.setattr(image_folder, "SETTLED", -1e9)
    assert len(open_shards(f"images:{photographs}")) == 12


# ---- pipes, sockets, devices
@pytest.fixture
def odd(tmp_path: Path, photographs: Path) -> Path:
    """A folder of one image, a FIFO, a socket, a link to an endless device and a file of a terabyte."""
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "good.jpg").write_bytes((photographs / "photo00.jpg").read_bytes())
    os.mkfifo(folder / "pipe.jpg")
    here = os.getcwd()
    os.chdir(folder)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as door:
        door.bind("socket.png")
    os.chdir(here)
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "large.jpg").touch()
    os.truncate(folder / "large.jpg", 1 << 40)
    return folder


def test_odd_files_among_images_are_bad_samples(odd: Path, tmp_path: Path) -> None:
    shards = open_shards(f"images:{odd}")
    bad = dict[str, str]()
    for i in range(len(shards)):
        try:
            read_image(shards, i)
        except BadSample as e:
            bad[shards.key(i)] = e.reason
    assert set(bad) == {"pipe", "socket", "zero", "large"} and f"has {1 << 40} bytes; at most {1 << 30} are read" in bad["large"]
    found = pack("images", str(odd), tmp_path / "out", Options(bad_samples=4))
    assert (found.images, found.left_out) == (1, 4)
    said = (tmp_path / "out/manifest.json").read_text()
    assert all(f"is {kind}, and not a regular file" in said for kind in ("a FIFO", "a socket", "a device"))


@pytest.mark.parametrize("kind", ["shard", "streamed shard", "manifest", "annotations", "label map"])
def test_a_fifo_is_never_waited_on(kind: str, tmp_path: Path, write: Write, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    shard = write("a/0.tar", {"0.jpg": (photographs / "photo00.jpg").read_bytes()})
    if "shard" in kind:
        os.mkfifo(tmp_path / "pipe.tar")
        with pytest.raises(DataError, match=r"pipe\.tar: is a FIFO, and not a regular file"):
            if kind == "shard":
                open_shards(str(tmp_path / "pip*.tar"))
            else:
                from twinview.data.dataset.stream import tar_samples

                list(tar_samples(tmp_path / "pipe.tar"))
    elif kind == "manifest":
        os.mkfifo(shard.with_name("manifest.json"))
        assert len(open_shards(str(shard.parent))) == 1
    elif kind == "annotations":
        (tmp_path / "coco/train2017").mkdir(parents=True)
        (tmp_path / "coco/train2017/a.jpg").write_bytes(b"x")
        (tmp_path / "coco/annotations").mkdir()
        (tmp_path / "coco/annotations/instances_train2017.json").symlink_to("/dev/zero")
        assert main(["shards", "pack", "coco", str(tmp_path / "coco"), str(tmp_path / "out")]) == 2  # no regular file: as if it were not there
        assert capsys.readouterr().err.count("\n") == 1
    else:
        (tmp_path / "maps").mkdir()
        for i in range(12):
            os.mkfifo(tmp_path / f"maps/photo{i:02}.png")
        with pytest.raises(DataError, match="has no label map"):
            pack("images", str(photographs), tmp_path / "out", Options(), labels=str(tmp_path / "maps"))


# ---- what does not end
class Endless:
    def read(self, n: int) -> bytes:
        return b" " * n

    def close(self) -> None:
        pass


def test_a_manifest_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_open", lambda *_: Endless())
    monkeypatch.setattr(transport, "SMALL_BYTES", 1 << 22)
    with pytest.raises(DataError, match=rf"manifest\.json: does not end after {1 << 22} bytes: it is no manifest and no index"):
        transport.small("https://example.org/manifest.json")


def test_a_shard_larger_than_the_cache_or_the_disk_is_given_up(server: Any, shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"is more than \[data\] cache_gb allows for all shards"):
        open_shards(f"pipe:cat {server.folder}/b.tar", Access(Cache.at(gigabytes=1e-5), ("cat",)))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(DataError, match="is full"):
        open_shards(f"{server.url}/a.tar")


def test_an_index_that_promises_more_than_it_holds_is_built_anew(write: Write) -> None:
    path = write("x.tar", {"0.jpg": b"1"})
    index.load(path)
    packed = io.BytesIO()
    np.savez_compressed(packed, keys=np.zeros(1 << 24, np.uint8))
    packed.seek(0)
    with pytest.raises(ValueError, match="is packed otherwise"):
        check_stored(packed)
    index.sidecar(path).write_bytes(packed.getvalue())
    assert index.read(path) is None and len(index.load(path)) == 1


def test_headers_of_a_tar_that_promise_a_terabyte(write: Write) -> None:
    path = write("x.tar", {"0.jpg": b"1", "1.jpg": b"2"})
    block = bytearray(path.read_bytes()[:512])
    block[124:136] = b"\x80" + (1 << 40).to_bytes(11, "big")
    for kind, said in ((b"0", "promises 1099511627776 bytes"), (b"L", "an extended header of 1099511627776 bytes is no header"), (b"x", "an extended header")):
        block[156:157] = kind
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)

        def read(n: int, at: int, block: bytes = bytes(block)) -> bytes:
            return block[at : at + n].ljust(n, b"x") if at < 512 else b"x" * n

        from twinview.data.store.regular import SAMPLE_BYTES
        from twinview.data.store.tar import members

        if kind == b"0":
            assert next(members(read, None, "x.tar")).size > SAMPLE_BYTES
        else:
            with pytest.raises(DataError, match=said):
                next(members(read, None, "x.tar"))

