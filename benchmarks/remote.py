"""Samples a second out of shards on this disk, by http on the first epoch and on the second, and streamed.

    python benchmarks/remote.py --images camvid/images/train

The folder is packed `--repeat` times over into shards of `--shard` images.  A server in a process of its own answers after `--latency` ms and sends
`--rate` MB/s to each connection, as an object store may.  Two views of 224 pixels are drawn of each image (no photometry); `--workers` processes
draw, one takes the batches, which costs nothing.  `prefetch off` waits for each shard when a batch needs it.  Every case reads whole epochs in
turn, `--rounds` times; the fastest round counts, in wall time, and the longest that a batch was waited for after the first.  The result
goes to benchmarks/results/remote.json.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ["no_proxy"] = "*"

from twinview.assembly import assemble
from twinview.data.dataset.open import open_data
from twinview.data.loading import loader
from twinview.data.loading.prefetch import PrefetchBatch, prefetch_batches
from twinview.data.prepare.pack import pack_images
from twinview.machine import cores
from twinview.recipe import read

OUT = Path(__file__).parent / "results" / "remote.json"
BATCH = 16


def serve(folder: Path, latency: float, rate: float, tell: Connection) -> None:
    """Serve a folder slowly until the process is ended."""

    class Slow(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def copyfile(self, source: Any, outputfile: Any) -> None:
            with suppress(ConnectionError):  # an epoch that is over closes its streams where they are
                while block := source.read(1 << 16):
                    time.sleep(len(block) / rate / 1e6)
                    outputfile.write(block)

        def do_GET(self) -> None:
            time.sleep(latency / 1000)
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    tell.send(f"http://127.0.0.1:{server.server_address[1]}")
    server.serve_forever()


@contextmanager
def served(folder: Path, latency: float, rate: float) -> Iterator[str]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(folder, latency, rate, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def without_prefetch(*args: Any) -> Iterator[PrefetchBatch]:
    for wish in prefetch_batches(*args):
        yield PrefetchBatch(wish.places, [])


def epoch(table: dict[str, Any], data: dict[str, Any], number: int, prefetch: bool = True) -> dict[str, float]:
    recipe = read({**table, "data": {**table["data"], **data}})
    found = open_data(recipe.data)
    assembly = assemble(recipe)
    dims = assembly.dims(assembly.encoder(random=True), len(found), found.classes)
    steps = len(found) // BATCH
    started = last = time.perf_counter()
    waits = []
    with patch.object(loader, "wishes", prefetch_batches if prefetch else without_prefetch):
        for _ in loader.training_batches(recipe, dims, found, rank=0, world=1, start=number * steps, steps=steps):
            waits.append(time.perf_counter() - last)
            last = time.perf_counter()
    seconds = time.perf_counter() - started
    return {"images_per_second": round(steps * BATCH / seconds, 1), "longest_wait": round(max(waits[1:]), 3), "seconds": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--shard", type=int, default=50)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--latency", type=float, default=50.0)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    table = {
        "views": {"use": "byol.crops"}, "encoder": {"use": "torchvision.resnet", "name": "resnet18"}, "loss": [{"use": "byol.image"}],
        "optimizer": {"use": "sgd", "lr": 0.1}, "run": {"steps": 1, "batch_size": BATCH, "device": "cpu"}, "data": {"workers": args.workers},
    }
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for n in range(args.repeat):
            (work / "images" / f"{n:02}").mkdir(parents=True)
            for path in sorted(args.images.iterdir()):
                (work / "images" / f"{n:02}" / path.name).symlink_to(path.resolve())
        packed = pack_images(work / "images", work / "shards", shard_size=args.shard)
        with served(work / "shards", args.latency, args.rate) as url:
            windowed, cache = {"window": args.window}, {"cache": str(work / "cache")}
            cases: dict[str, Any] = {
                "local": lambda: epoch(table, {"shards": str(packed.out), **windowed}, 0),
                "http, first epoch, prefetch off": lambda: epoch(table, {"shards": url, **windowed, **cache}, 0, prefetch=False),
                "http, first epoch": lambda: epoch(table, {"shards": url, **windowed, **cache}, 0),
                "http, second epoch": lambda: epoch(table, {"shards": url, **windowed, **cache}, 1),
                "http, streamed": lambda: epoch(table, {"shards": url, "streaming": True}, 0),
            }
            found: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
            for _ in range(args.rounds):
                for case, run in cases.items():
                    if case.startswith("http, first"):
                        shutil.rmtree(work / "cache", ignore_errors=True)
                    found[case].append(run())
                    print(case, found[case][-1], flush=True)
    best = {case: max(rounds, key=lambda one: one["images_per_second"]) for case, rounds in found.items()}
    settings = {key: value for key, value in vars(args).items() if key != "images"}
    about = {"images": packed.images, "shards": packed.shards, "megabytes": round(packed.bytes / 1e6, 1), "batch": BATCH}
    machine = {"cores": cores(), "processor": platform.processor() or platform.machine(), "load": os.getloadavg()[0]}
    OUT.write_text(json.dumps({"settings": settings, **about, "machine": machine, "cases": best, "all": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
