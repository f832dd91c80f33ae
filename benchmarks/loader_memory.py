"""Memory of data workers over a long epoch, how loading scales with them, and how soon the first batch comes.

    python benchmarks/loader_memory.py --samples 100000 --out benchmarks/results/loader_memory.json

Shards of tiny JPEGs (48 x 36, one of 64 pictures each, under keys of their own) are made in a temporary folder.  For 2, 1 and 0 workers an epoch of
two 32 px views is read to its end; at ten points of it the memory of every process is read from /proc/PID/smaps_rollup: Private (what only this
process has: the unique set size) and Pss (shared pages counted by their sharers).  Rates are wall images a second, and CPU seconds of all processes
an image.  The first batch's time has the workers' start and their imports in it; the photometry was compiled before.
"""
from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from twinview.assembly import assemble
from twinview.data.dataset.open import open_shards
from twinview.data.dataset.shards import Shards
from twinview.data.loading.loader import training_batches
from twinview.data.store import index
from twinview.recipe import read

OUT = Path(__file__).parent / "results" / "loader_memory.json"
BATCH, PICTURES, POINTS = 250, 64, 10


def make_shards(folder: Path, samples: int, per_shard: int = 10_000) -> None:
    rng = np.random.default_rng(0)
    files = []
    for _ in range(PICTURES):
        file = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((48, 36), Image.Resampling.BICUBIC)
        small.save(file, "JPEG", quality=80)
        files.append(file.getvalue())
    with webdataset.ShardWriter(str(folder / "tiny-%06d.tar"), maxcount=per_shard, verbose=0) as out:
        for n in range(samples):
            out.write({"__key__": f"street/camera-{n % 7}/{n:09}", "jpg": files[n % PICTURES]})


def recipe(folder: Path, workers: int) -> dict[str, Any]:
    return {
        "views": {"use": "byol.crops", "size": 32},
        "augment": {"use": "byol.photometry"},
        "encoder": {"use": "torchvision.resnet", "name": "resnet18"},
        "loss": [{"use": "byol.image"}],
        "data": {"shards": str(folder), "workers": workers},
        "optimizer": {"use": "sgd", "lr": 0.1},
        "run": {"epochs": 1, "batch_size": BATCH, "device": "cpu"},
    }


def memory(pid: int) -> dict[str, float]:
    """MiB."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kib = {name: int(value.split()[0]) for name, value in lines.items()}
    return {"private": round((kib["Private_Clean"] + kib["Private_Dirty"]) / 1024, 1), "pss": round(kib["Pss"] / 1024, 1)}


def cpu_seconds(pids: list[int]) -> float:
    tick = os.sysconf("SC_CLK_TCK")
    return sum(sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) for pid in pids) / tick


def epoch(folder: Path, shards: Shards, workers: int) -> dict[str, Any]:
    made = read(recipe(folder, workers))
    assembly = assemble(made)
    dims = assembly.dims(assembly.encoder(), len(shards))
    steps = len(shards) // BATCH
    begun = time.perf_counter()
    batches = training_batches(made, dims, shards, rank=0, world=1, steps=steps)
    next(batches)
    first = time.perf_counter() - begun
    here, children = os.getpid(), [child.pid for child in multiprocessing.active_children() if child.pid]
    points: list[dict[str, Any]] = []
    start, cpu, images = time.perf_counter(), cpu_seconds([here, *children]), 0
    for step in range(1, steps):
        images += len(next(batches).keys)
        if step % (steps // POINTS) == 0:
            found = {"samples": (step + 1) * BATCH, "main": memory(here), "workers": [memory(pid) for pid in children]}
            points.append(found)
    wall, spent = time.perf_counter() - start, cpu_seconds([here, *children]) - cpu
    batches.close()
    private = [[point["workers"][w]["private"] for point in points] for w in range(len(children))] or [[point["main"]["private"] for point in points]]
    return {
        "workers": workers,
        "first_batch_s": round(first, 2),
        "images_per_second": round(images / wall, 1),
        "cpu_us_per_image": round(spent / images * 1e6, 1),
        "private_growth_mib": [round(p[-1] - p[1], 1) for p in private],  # from a fifth of the epoch to its end
        "points": points,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 1, 0])
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shards(folder, args.samples)
        shards = open_shards(str(folder))
        held = sum(getattr(found, name).nbytes for found in shards.indexes for name in index.ARRAYS)
        epochs = [epoch(folder, shards, workers) for workers in args.workers]
    result = {
        "samples": args.samples,
        "index_mib": round(held / 2**20, 2),
        "machine": {"cores": os.cpu_count(), "load": [round(load, 1), round(os.getloadavg()[0], 1)]},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "epochs": epochs,
    }
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps([{k: v for k, v in e.items() if k != "points"} for e in epochs], indent=1))


if __name__ == "__main__":
    main()
