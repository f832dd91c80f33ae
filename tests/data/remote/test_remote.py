"""Shards that lie elsewhere are read as local ones are, fetched once, and whatever goes wrong on the way is one line."""
from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinview.data.dataset.open import open_shards
from twinview.data.dataset.shards import Shards
from twinview.data.prepare.check import check_shards
from twinview.data.prepare.pack import pack_images
from twinview.data.remote import base, transport
from twinview.data.remote.cache import Cache
from twinview.data.remote.shard import Access, RemoteShard, fetch_all
from twinview.data.store.index import sidecar
from twinview.errors import DataError

Write = Callable[[str, Mapping[str, bytes]], Path]


def png(n: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 30, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def samples(shards: Shards) -> list[Any]:
    return [(shards.key(i), shards.read(i).fields) for i in range(len(shards))]


def cached(server: Any, suffix: str = ".tar") -> list[str]:
    return sorted(p.name.partition("-")[2] for p in (server.folder / "cache" / "shards").glob("*-*" + suffix))


@pytest.mark.parametrize("ranges", [True, False])
def test_the_same_samples_under_the_same_checksum(server: Any, shards: list[str], ranges: bool) -> None:
    server.ranges = ranges
    far, near = open_shards(server.url + "/{a,b,c}.tar"), open_shards(shards)
    assert samples(far) == samples(near) and far.checksum == near.checksum and far.classes == near.classes
    assert [str(path) for path in far.paths] == [f"{server.url}/{name}.tar" for name in "abc"]
    again = open_shards(server.url + "/{a,b,c}.tar")
    assert samples(again) == samples(near) and [server.got(f"{name}.tar") for name in "abc"] == [1, 1, 1]


def test_an_index_beside_the_shard_saves_fetching_it_at_the_start(server: Any, shards: list[str]) -> None:
    near = open_shards(shards)  # writes the side-cars, which the server has from now on
    far = open_shards(f"{server.url}/{{a,b,c}}.tar?signature=secret")
    assert far.checksum == near.checksum and not cached(server) and [server.got(f"{name}.tar.index.npz") for name in "abc"] == [1, 1, 1]
    assert far.read(60) == near.read(60) and cached(server) == ["c.tar"] and "secret" not in str(far.paths[2])
    open_shards(f"{server.url}/{{a,b,c}}.tar?signature=secret")
    assert server.got("a.tar.index.npz") == 1, "the index was kept"


def test_an_index_of_another_shard_is_found_out(server: Any, shards: list[str], write: Write) -> None:
    open_shards(shards)
    kept = sidecar(Path(shards[0])).read_bytes()
    whole = Path(shards[0]).read_bytes()
    write("a.tar", {"other.png": b"1"})
    Path(shards[0]).write_bytes(Path(shards[0]).read_bytes().ljust(len(whole), b"\0"))
    sidecar(Path(shards[0])).write_bytes(kept)
    far = open_shards(f"{server.url}/a.tar")
    with pytest.raises(DataError, match=r"a\.tar: is not the shard that its index is of"):
        far.read(0)
    assert not cached(server) and not cached(server, ".part")


def test_a_folder_with_a_manifest(server: Any, photographs: Path) -> None:
    out = pack_images(photographs, server.folder / "photos").out
    near, far = open_shards(str(out)), open_shards(server.url + "/photos/")
    assert samples(far) == samples(near) and far.checksum == near.checksum
    server.asked.clear()
    open_shards(server.url + "/photos")
    assert set(server.asked) == {("GET", "photos/manifest.json")}, "it vouches for what the cache has"
    assert check_shards([server.url + "/photos"]).images == 12
    shutil.rmtree(server.folder / "cache")
    victim = out / "photos-000003.tar"
    far = open_shards(server.url + "/photos")
    data = bytearray(victim.read_bytes())
    data[700] ^= 1
    victim.write_bytes(data)
    with pytest.raises(DataError, match=r"photos-000003\.tar: has another sha256 than manifest\.json says"):
        fetch_all(far.paths)
    victim.write_bytes(data + b"\0" * 512)
    with pytest.raises(DataError, match=r"photos-000003\.tar: has \d+ bytes, and \d+ in manifest\.json"):
        open_shards(server.url + "/photos")
    (out / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"photos: its manifest\.json is none of `twinview shards pack`"):
        open_shards(server.url + "/photos")


def test_any_protocol_of_fsspec(server: Any, shards: list[str]) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    try:
        for path in shards:
            memory.pipe(f"/street/{Path(path).name}", Path(path).read_bytes())
        near = open_shards(shards)
        for spec in ("memory://street/{a,b,c}.tar", "memory://street/*.tar", f"file://{server.folder}/{{a,b,c}}.tar"):
            far = open_shards(spec)
            assert samples(far) == samples(near) and far.checksum == near.checksum
        for spec, what in (("memory://street/d.tar", "there is no such file"), ("memory://*.tar", "names nothing that is there")):
            with pytest.raises(DataError, match=f"{spec.replace('*', '.')}: {what}".replace("memory://..", r"memory://\*.")):
                open_shards(spec)
        far = open_shards("memory://street/b.tar")
        memory.pipe("/street/b.tar", Path(shards[0]).read_bytes())
        shutil.rmtree(server.folder / "cache")
        with pytest.raises(DataError, match=r"b\.tar: has changed there since it was opened"):
            far.read(0)
    finally:
        memory.store.clear()


def test_a_protocol_whose_package_is_missing_says_what_to_install(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"^gs://bucket/x\.tar: reading gs:// needs another package\. Install it: pip install 'twinview\[gcs\]'\.$"):
        open_shards("gs://bucket/x.tar")
    with pytest.raises(DataError, match=r"^s3://bucket/x\.tar: reading s3:// needs another package\. Install it: pip install 'twinview\[s3\]'\.$"):
        open_shards("s3://bucket/x.tar")
    with pytest.raises(DataError, match=r"^gopher://host/x\.tar: .*gopher.*http, https, s3, gs and what fsspec reads are known\.$"):
        open_shards("gopher://host/x.tar")


def test_faults_of_servers_are_one_line(server: Any, shards: list[str], tmp_path: Path) -> None:
    def fault(spec: str, expected: str) -> None:
        started = time.monotonic()
        with pytest.raises(DataError, match=expected) as caught:
            open_shards(spec).read(0)
        assert "\n" not in str(caught.value) and time.monotonic() - started < 15
        assert not cached(server) and not cached(server, ".part")

    fault(server.url + "/d.tar", r"/d\.tar: the server answers 404 Not Found\.$")
    server.answers["a.tar"] = [403]
    fault(server.url + "/a.tar", r"/a\.tar: the server answers 403 Forbidden\.$")
    server.answers["a.tar"] = [503] * 5
    fault(server.url + "/a.tar", r"/a\.tar: the server answers 503 Service Unavailable \(5 tries\)\.$")
    fault(server.url + "/photos", r"/photos: is no \.tar, and there is no manifest\.json in it\. Write the shards with \{000\.\.063\}\.$")
    fault(server.url + "/*.tar", r"http lists nothing: write the shards with \{000\.\.063\}\.$")
    fault(server.url + "/a b.tar", r"/a b\.tar: is no URL: .*Write other characters as %20, and hosts in ASCII\.$")
    fault("http://[::1/a.tar", r"^http://\[::1/a\.tar: Invalid IPv6 URL\.$")
    fault("http://me:secret@host/a.tar", r"^http://…@host: a password in a URL ends up in logs\. Write it into ~/\.netrc\.$")
    server.slow = 10.0
    base.SILENCE = 0.05
    fault(server.url + "/a.tar", r"/a\.tar: cannot be reached: no byte in 0 s \(5 tries\)\.$")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        fault(f"http://127.0.0.1:{free.getsockname()[1]}/a.tar", r"/a\.tar: cannot be reached: Connection refused \(5 tries\)\.$")
    server.slow = 0.0


@pytest.mark.parametrize("ranges", [True, False])
def test_what_passes_is_tried_again(server: Any, shards: list[str], ranges: bool) -> None:
    """Two refusals, then a body that is cut in half: the rest is asked for, or where the server knows no ranges, all again."""
    server.ranges, server.answers["a.tar"] = ranges, [503, 500, 0, -1]
    assert samples(open_shards(server.url + "/a.tar")) == samples(open_shards(shards[0])) and server.got("a.tar") == 4
    server.ranges, server.answers["b.tar"] = False, [0] * 99
    with pytest.raises(DataError, match=r"b\.tar: was cut \d+ bytes before its end \(5 tries\)\.$"):
        open_shards(server.url + "/b.tar")
    assert cached(server) == ["a.tar"] and not cached(server, ".part")


def test_a_tar_that_is_damaged_there_is_not_kept(server: Any, shards: list[str]) -> None:
    data = bytearray(Path(shards[1]).read_bytes())
    header = int(open_shards(shards[1]).indexes[0].files(5).__next__()[1]) - 512
    sidecar(Path(shards[1])).unlink()
    data[header : header + 100] = b"x" * 100
    Path(shards[1]).write_bytes(data)
    with pytest.raises(DataError, match=rf"^{server.url}/b\.tar, offset \d+: "):
        open_shards(server.url + "/b.tar")
    assert not cached(server) and not cached(server, ".part")


def test_a_shard_that_changes_there_is_another_shard(server: Any, shards: list[str]) -> None:
    before = open_shards(server.url + "/a.tar")
    shutil.copy(shards[1], shards[0])
    after = open_shards(server.url + "/a.tar")
    assert len(after) == 33 and len(before) == 7 and before.read(6).key == "006", "an open run reads on what it has begun with"
    for path in (server.folder / "cache").rglob("*.tar"):
        path.unlink()
    before.close()
    with pytest.raises(DataError, match=r"a\.tar: has changed there since it was opened"):
        before.read(6)
    assert after.read(6).key == "013"


def _reads(url: str, numbers: range) -> None:
    shards = open_shards(url)
    assert [shards.read(i).key for i in numbers] == [f"{i:03}" for i in numbers]


def test_several_processes_fetch_each_shard_once(server: Any, shards: list[str]) -> None:
    server.slow = 0.1
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=_reads, args=(server.url + "/{a,b,c}.tar", range(61))) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert [reader.exitcode for reader in readers] == [0] * 4
    assert [server.got(f"{name}.tar") for name in "abc"] == [1, 1, 1]


def test_a_kill_in_the_middle_leaves_nothing_broken(server: Any, shards: list[str]) -> None:
    server.slow = 5.0
    reader = multiprocessing.get_context("fork").Process(target=_reads, args=(server.url + "/b.tar", range(1)))
    reader.start()
    while not cached(server, ".part"):
        time.sleep(0.01)
    waiting = multiprocessing.get_context("fork").Process(target=_reads, args=(server.url + "/b.tar", range(0)))
    waiting.start()
    time.sleep(0.2)
    server.slow = 0.0
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGKILL)
    reader.join()
    waiting.join(20)
    assert waiting.exitcode == 0 and cached(server) == ["b.tar"] and not cached(server, ".part"), "its lock was taken over"
    (server.folder / "cache" / "shards" / "1-old.tar.part").write_bytes(b"litter")
    assert samples(open_shards(server.url + "/b.tar")) == samples(open_shards(shards[1])) and not cached(server, ".part")


def test_the_longest_unused_make_room_and_none_that_is_read(server: Any, shards: list[str]) -> None:
    sizes = [Path(path).stat().st_size for path in shards]
    access = Access(Cache.at(gigabytes=(sizes[1] + sizes[2]) / 1e9))
    far, near = open_shards(server.url + "/{a,b,c}.tar", access), open_shards(shards)
    assert sum(path.stat().st_size for path in access.cache.folder.glob("*.tar")) <= access.cache.limit
    far.read(0)
    time.sleep(0.01)
    far.close()
    far.read(59)
    assert cached(server) == ["a.tar", "c.tar"]
    time.sleep(0.01)
    other = open_shards(server.url + "/b.tar", access)
    other.read(0)  # needs the room of a, the longest unused; c is open
    assert cached(server) == ["b.tar", "c.tar"]
    open_shards(server.url + "/a.tar", access).read(0)
    assert cached(server) == ["a.tar", "b.tar", "c.tar"], "all are being read: over the limit, and none is lost"
    assert samples(far) == samples(near)
    other.close()
    far.close()
    open_shards(server.url + "/{a,b,c}.tar", Access(Cache.at(gigabytes=1e-9)))
    assert len(cached(server)) <= 1


def test_a_full_disk_is_one_line(server: Any, shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cache/shards: is full\. Fetched shards are kept there: name another folder with \[data\] cache"):
        open_shards(server.url + "/a.tar")
    assert not cached(server) and not cached(server, ".part")
    (server.folder / "file").write_text("")
    near = open_shards(shards)
    for name in "ab":  # a's index is fetched first, and b's shard, which has none there
        sidecar(near.paths[1]).unlink(missing_ok=True)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"file: cannot be used: "):
            open_shards(f"{server.url}/{name}.tar", Access(Cache.at(str(server.folder / "file"))))
    with pytest.raises(DataError, match=r"cache: ~nobody-has-this-name/x: there is no such user"):
        Cache.at("~nobody-has-this-name/x")


def test_a_pipe_runs_only_what_the_recipe_allows_and_without_a_shell(server: Any, shards: list[str]) -> None:
    spec = f"pipe:cat '{server.folder}/{{a,b,c}}.tar'"
    with pytest.raises(DataError, match=r"runs a program\. Allow it in a recipe of your own: \[data\] allow_pipes = \[.cat.\]"):
        open_shards(spec)
    with pytest.raises(DataError, match=r"\[data\] allow_pipes does not name 'cat'\. There is: aws\.$"):
        open_shards(spec, Access(programs=("aws",)))
    allowed = Access(programs=("cat", "nothing", "sh"))
    far, near = open_shards(spec, allowed), open_shards(shards)
    assert samples(far) == samples(near) and far.checksum == near.checksum
    assert samples(open_shards(spec, Access(programs=("cat",)))) == samples(near)
    for command, what in (
        ("cat none.tar", r"ended with exit code 1: .*none\.tar: No such file or directory \(5 tries\)"),
        (f"cat {shards[0]} > {server.folder}/out", r"ended with exit code 1: .*"),
        ("nothing x", r"nothing cannot be started: No such file or directory"),
        (f"sh -c 'head -c 3000 {shards[0]}'", r"offset \d+: .*cut off: copy it anew"),
    ):
        with pytest.raises(DataError, match=rf"^pipe:{command.split()[0]} .*{what}\.$"):
            open_shards("pipe:" + command, allowed)
    assert not (server.folder / "out").exists()


def test_room_for_three_windows_is_asked_for_at_once(server: Any, shards: list[str]) -> None:
    from twinview.data.dataset.open import open_data
    from twinview.recipe.tables import Data

    sizes = sorted(Path(path).stat().st_size for path in shards)
    spec = server.url + "/{a,b,c}.tar"
    with pytest.raises(DataError, match=r"\[data\] cache_gb: .* GB hold less than all 3 shards, which window = 0 reads together: .* for no limit\.$"):
        open_data(Data(shards=spec, cache_gb=(sizes[1] + sizes[2]) / 1e9))
    assert len(open_data(Data(shards=spec, window=1, cache_gb=sum(sizes) / 1e9))) == 61
    with pytest.raises(DataError, match=r"hold less than three windows of 1 shards"):
        open_data(Data(shards=spec, window=1, cache_gb=(sum(sizes) - 1) / 1e9))


def test_a_login_of_netrc_is_sent_to_its_host(server: Any, shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    seen = []
    handler = server.http.RequestHandlerClass
    plain = handler.do_GET

    def do_get(self: Any) -> None:
        seen.append(self.headers.get("Authorization"))
        plain(self)

    monkeypatch.setattr(handler, "do_GET", do_get)
    open_shards(server.url + "/a.tar")
    assert set(seen) == {"Basic bWU6c2VjcmV0"}


def test_shards_in_the_cache_are_pickled_small(server: Any, shards: list[str]) -> None:
    import pickle

    found = open_shards(server.url + "/a.tar").paths[0]
    assert isinstance(found, RemoteShard) and pickle.loads(pickle.dumps(found)) == found and len(pickle.dumps(found)) < 1000
    assert json.dumps([str(found)])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_shards_of_the_next_window_are_there_when_it_begins(server: Any, tables: dict[str, Any], write: Write, workers: int) -> None:
    """Twelve shards of six, two in a window, six in the cache: the batches are those of local shards, and few have to wait."""
    import torch

    from twinview.assembly import assemble
    from twinview.data.dataset.open import open_data
    from twinview.data.loading.loader import training_batches
    from twinview.recipe import read

    paths = [write(f"s{s:02}.tar", {f"{s:02}{n}.png": png(6 * s + n) for n in range(6)}) for s in range(12)]
    size = paths[0].stat().st_size

    def batches(spec: str, *overrides: str) -> list[Any]:
        recipe = read({**tables, "data": {"shards": spec, "workers": workers, "window": 2}}, ["run.batch_size=2", *overrides])
        found = open_data(recipe.data)
        assembly = assemble(recipe)
        dims = assembly.dims(assembly.encoder(), len(found), found.classes)
        made = []
        for batch in training_batches(recipe, dims, found, rank=0, world=1, steps=72):
            made.append((batch.keys, torch.stack([i.double().sum() for i in batch.images]).tolist()))
            time.sleep(0.01)  # a step
        return made

    near = batches(str(server.folder / "s{00..11}.tar"))
    for path in paths:
        assert sidecar(path).exists()
    assert batches(server.url + "/s{00..11}.tar", f"data.cache_gb={6.5 * size / 1e9}") == near
    assert len(cached(server)) == 6
    assert sum(server.got(f"s{s:02}.tar") for s in range(12)) <= 24 + 2, "once an epoch, but for one that may be evicted a moment before its last use"


def test_what_a_batch_wishes_for(tables: dict[str, Any], shards: list[str]) -> None:
    from twinview.data.dataset.open import open_data
    from twinview.data.dataset.order import BatchSampler
    from twinview.data.loading.prefetch import prefetch_batches
    from twinview.recipe.tables import Data, Source

    for data in (Data(shards=shards), Data(source=[Source(shards=shards[:2], subset=0.5), Source(shards=shards[2])])):
        found = open_data(data).numbered()
        plan = BatchSampler(order=found.order(3, 1), global_batch=2, accumulation=1, rank=0, world=1)
        seen = list(prefetch_batches(plan, found, 1, 0, len(found) // 2))
        assert [wish.places for wish in seen] == list(plan.batches(0, len(found) // 2))
        at = [{str(found.path(i)) for _, i in wish.places} for wish in seen]
        wished = [{str(found.paths[i]) for i in wish.shards} for wish in seen]
        assert all(now <= set(wish) for now, wish in zip(at, wished)), "what is in use"
        turn = next(i for i, now in enumerate(at) if now != at[0])
        assert at[turn] <= wished[0], "and what the next window holds"


def test_a_run_on_a_url_is_the_run_on_the_files(server: Any, toy: dict[str, Any], shards: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from twinview.api import train
    from twinview.cli import main

    table = {**toy, "run": {**toy["run"], "steps": 12, "batch_size": 8, "device": "cpu"}}
    near = train(table, f"data.shards={server.folder}/{{a,b,c}}.tar", run=server.folder / "near")
    for window in (0, 2):
        far = train(table, f"data.shards={server.url}/{{a,b,c}}.tar", f"data.window={window}", run=server.folder / f"far{window}")
        assert window or far.loss == near.loss
    manifests = [json.loads((server.folder / run / "manifest.json").read_text())["data"] for run in ("near", "far0")]
    assert manifests[0]["checksum"] == manifests[1]["checksum"] and manifests[1]["shards"][0] == f"{server.url}/a.tar"
    assert main(["shards", "check", server.url + "/{a,b,c}.tar"]) == 0 and "61 images" in capsys.readouterr().out
    assert main(["shards", "stat", server.url + "/b.tar"]) == 0 and "samples     33" in capsys.readouterr().out
    assert main(["shards", "stat", server.url + "/d.tar"]) == 2
    assert capsys.readouterr().err.strip().endswith("/d.tar: the server answers 404 Not Found.")


def test_a_connection_that_breaks_in_a_small_file_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks:
        """Half of a file; then the connection breaks, the first two times."""

        opened = 0

        def __init__(self) -> None:
            Breaks.opened += 1
            self.left = [b"ha", b"lf", b""]

        def read(self, size: int) -> bytes:
            if Breaks.opened < 3 and len(self.left) == 2:
                raise ConnectionResetError("reset by peer")
            return self.left.pop(0)

        def close(self) -> None:
            """Nothing is open."""

    monkeypatch.setattr(transport, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(transport, "_open", lambda *_: Breaks())
    assert transport.small("http://there/manifest.json") == b"half" and Breaks.opened == 3
    monkeypatch.setattr(transport, "PAUSES", ())
    Breaks.opened = 0
    with pytest.raises(DataError, match="http://there/manifest.json: .*reset by peer"):
        transport.small("http://there/manifest.json")
