"""Shards in an object store: a real S3 server (moto's), and a server before it that fails on purpose, as stores and networks do."""
from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("flask", reason="moto's server is made with it")
from moto.server import ThreadedMotoServer

from twinview.data.dataset.open import open_shards
from twinview.data.dataset.shards import Shards
from twinview.errors import DataError

Write = Callable[[str, Mapping[str, bytes]], Path]
KEPT = ("content-type", "content-length", "content-range", "etag", "last-modified", "accept-ranges")


class Failing:
    """Hands requests on to another server.  The next answers to GET of an object may be statuses, or 0: a body that is cut in half."""

    def __init__(self, behind: str) -> None:
        self.answers: list[int] = []
        self.asked = Counter[str]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                outer.asked[f"{self.command} {self.path.partition('?')[0]}"] += 1
                fault = outer.answers.pop(0) if self.command == "GET" and ".tar" in self.path and outer.answers else -1
                if fault > 0:
                    self.send_error(fault)
                    return
                asked = urllib.request.Request(behind + self.path, headers=dict(self.headers), method=self.command)
                try:
                    with urllib.request.urlopen(asked) as answer:
                        status, headers, body = answer.status, answer.headers, answer.read()
                except urllib.error.HTTPError as e:
                    status, headers, body = e.code, e.headers, e.read()
                self.send_response(status)
                for name in KEPT:
                    if name in headers:
                        self.send_header(name, headers[name])
                if "content-length" not in headers:
                    self.send_header("content-length", str(len(body)))
                self.end_headers()
                if fault == 0:
                    self.wfile.write(body[: len(body) // 2])
                    self.close_connection = True
                else:
                    self.wfile.write(body)

            do_GET = do_HEAD = _pass

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


class Store:
    """The bucket `street`, and the server before it."""

    def __init__(self, client: Any, before: Failing) -> None:
        self.client, self.before = client, before

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="street", Key=key, Body=data)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    yield f"http://{host}:{port}"
    made.stop()


@pytest.fixture
def store(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    import boto3
    import s3fs

    monkeypatch.setenv("TWINVIEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1", "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr("twinview.data.remote.transport.PAUSES", (0.01,) * 4)
    before = Failing(moto)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", before.url)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=moto)
    client.create_bucket(Bucket="street")
    yield Store(client, before)
    s3fs.S3FileSystem.clear_instance_cache()
    before.stop()
    for one in client.list_objects_v2(Bucket="street").get("Contents", ()):
        client.delete_object(Bucket="street", Key=one["Key"])


@pytest.fixture
def local(store: Store, write: Write) -> list[str]:
    """Two shards, in the bucket too."""
    paths = [write(f"x-{s}.tar", {f"{s}/{n:03}.jpg": bytes([s, n]) * 400 for n in range(30)}) for s in (0, 1)]
    for path in paths:
        store.put(f"data/{path.name}", path.read_bytes())
    return [str(path) for path in paths]


def samples(shards: Shards) -> list[Any]:
    return [shards.read(i) for i in range(len(shards))]


@pytest.mark.parametrize("spec", ["s3://street/data/x-{0..1}.tar", "s3://street/data/x-*.tar"])
def test_the_same_samples_as_on_disk(store: Store, local: list[str], spec: str) -> None:
    near, far = open_shards(local), open_shards(spec)
    assert samples(far) == samples(near) and far.checksum == near.checksum
    asked = store.before.asked.copy()
    assert samples(open_shards(spec)) == samples(near)
    again = {what for what, count in (store.before.asked - asked).items() if what.startswith("GET") and what.endswith(".tar")}
    assert not again, "the cache has them"


def test_what_the_store_does_not_have_is_named(store: Store, local: list[str]) -> None:
    for spec in ("s3://street/data/y.tar", "s3://other/x.tar"):
        with pytest.raises(DataError, match=rf"^{spec}: "):
            open_shards(spec)
    with pytest.raises(DataError, match=r"names nothing that is there"):
        open_shards("s3://street/data/z-*.tar")


def test_a_store_that_fails_now_and_then(store: Store, local: list[str]) -> None:
    """500, 503 and bodies that break off are tried again; the bytes are right."""
    store.before.answers = [503, 0, 500, 0]
    assert samples(open_shards("s3://street/data/x-0.tar")) == samples(open_shards(local[0]))
    assert not store.before.answers


def test_a_store_that_always_fails_ends_with_one_line(store: Store, local: list[str]) -> None:
    store.before.answers = [500] * 200
    with pytest.raises(DataError, match=r"^s3://street/data/x-0.tar: .*\(5 tries\)\.$") as e:
        open_shards("s3://street/data/x-0.tar").read(0)
    assert "\n" not in str(e.value)


def test_an_object_that_is_written_anew_is_another_shard(store: Store, local: list[str], write: Write) -> None:
    first = open_shards("s3://street/data/x-0.tar")
    assert first.read(0).fields["jpg"] == bytes([0, 0]) * 400
    store.put("data/x-0.tar", write("new.tar", {f"0/{n:03}.jpg": bytes([9, n]) * 400 for n in range(30)}).read_bytes())
    assert open_shards("s3://street/data/x-0.tar").read(0).fields["jpg"] == bytes([9, 0]) * 400
