"""Small shards, and a method whose views, draws and masks are all random."""
from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Write = Callable[[str, Mapping[str, bytes]], Path]


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def picture(seed: int, height: int = 20, width: int = 30) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a tar of named files."""

    def _write(name: str, files: Mapping[str, bytes]) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w") as tar:
            for member, data in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return _write


class Server:
    """A web server of one folder on this machine, which counts what it is asked and can be told to misbehave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: Counter[tuple[str, str]] = Counter()  # method, name
        self.ranges = True
        self.slow = 0.0  # seconds before each body
        self.answers: dict[str, list[int]] = {}  # name -> statuses of the next answers; 0: a body that is cut in half, -1: as it should be
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                name = self.path.lstrip("/").partition("?")[0]
                server.asked[self.command, name] += 1
                queue = server.answers.get(name, [])
                status = queue.pop(0) if queue and self.command == "GET" else -1
                path = server.folder / name
                if status > 0 or not path.is_file():
                    self.send_error(status if status > 0 else 404)
                    return
                data, begin = path.read_bytes(), 0
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                if asked and server.ranges:
                    begin = int(asked[1])
                self.send_response(206 if begin else 200)
                self.send_header("Content-Length", str(len(data) - begin))
                self.send_header("ETag", hashlib.md5(data).hexdigest())
                self.end_headers()
                if self.command == "GET":
                    time.sleep(server.slow)
                    self.wfile.write(data[begin : len(data) // 2 if status == 0 else None])
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def got(self, name: str) -> int:
        """How often a file was asked for."""
        return self.asked["GET", name]

    def stop(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of the folder that `write` writes to; the cache lies in `cache` there, and waits between tries are short."""
    monkeypatch.setenv("TWINVIEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("twinview.data.remote.transport.PAUSES", (0.01,) * 4)
    monkeypatch.setattr("twinview.data.remote.http.SILENCE", 2.0)
    monkeypatch.setattr("twinview.data.remote.base.SILENCE", 2.0)
    made = Server(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def shards(write: Write) -> list[str]:
    """61 images in three uneven shards, with classes and label maps."""
    paths = []
    for name, numbers in (("a", range(0, 7)), ("b", range(7, 40)), ("c", range(40, 61))):
        files: dict[str, bytes] = {}
        for n in numbers:
            labels = np.full((20, 30), n, np.uint8)
            files |= {f"{n:03}.png": encoded(picture(n)), f"{n:03}.cls": str(n % 5).encode(), f"{n:03}.seg.png": encoded(labels)}
        paths.append(str(write(f"{name}.tar", files)))
    return paths


RANDOM = '''
import os
import signal
import torch
from torch.utils.data import get_worker_info
from twinview.errors import PluginError
from twinview.hooks import hookimpl, part
from twinview.values import Geometry


@part
class Views:
    fault: str = ""

    @hookimpl
    def sample_views(self, size, rng):
        if self.fault and get_worker_info() is not None or self.fault == "here":
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "bug":
                raise ZeroDivisionError("a bug of the part")
            raise PluginError("[views] random.views: it is not its day.")
        first = rng.random((3, 2)) * 0.5
        boxes = torch.from_numpy(__import__("numpy").concatenate([first, first + 0.1 + rng.random((3, 2)) * 0.4], 1)).float()
        boxes[2] = torch.tensor([0.0, 0.0, 1.0, 1.0])
        flips = torch.from_numpy(rng.random(3) < 0.5)
        return Geometry(boxes, flips, torch.tensor(size), ((12, 16), (8, 8), (10, 15)), ((0, 1), (1, 0)), {"iou": torch.tensor(rng.random())})


@part
class Sizes:
    @hookimpl
    def sample_views(self, size, rng):
        return Geometry(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([False]), torch.tensor(size), (size,), ())


@part
class Brightness:
    @hookimpl
    def draw_augment(self, view, size, rng):
        return {"add": torch.tensor(rng.integers(0, 100), dtype=torch.int16), "color": torch.from_numpy(rng.random(3)).float()}

    @hookimpl
    def apply_augment(self, pixels, params):
        shifted = pixels + params["add"].view(-1, 1, 1, 1) * params["color"].view(-1, 3, 1, 1)
        return shifted.clamp(0, 255).to(torch.uint8)


@part
class Masks:
    @hookimpl
    def make_masks(self, geometry, grids, rng):
        hidden = torch.zeros(grids[0][0] * grids[0][1], dtype=torch.bool)
        hidden[torch.from_numpy(rng.permutation(len(hidden))[:1])] = True
        return (hidden, None, None)


@hookimpl
def parts():
    return {"views": Views, "sizes": Sizes, "brightness": Brightness, "masks": Masks}
'''


@pytest.fixture
def tables(toy: dict[str, Any], install: Callable[..., None], shards: list[str]) -> dict[str, Any]:
    """A recipe of random views of those shards."""
    install("random", RANDOM, dist="twinview_random")
    return {
        **toy,
        "views": {"use": "random.views"},
        "augment": {"use": "random.brightness"},
        "masks": {"use": "random.masks"},
        "data": {"shards": shards, "workers": 0},
        "run": {**toy["run"], "batch_size": 28, "device": "cpu", "seed": 5},
    }
