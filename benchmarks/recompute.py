"""Activation checkpointing: what it saves and what it costs, beside the same step without it, each in a fresh process.

    python benchmarks/recompute.py                       # BYOL, two views of 224 pixels, fp32: ViT-S, batch 16; ResNet-50, batch 8
    python benchmarks/recompute.py --repeats 1 --cases resnet50

A step of one rank under twinview, twice; the second is timed, in CPU seconds of all threads.  Memory is the peak of the process over what it held
before the first step (weights, target, data), on a GPU the peak allocated.  The losses of both are compared.
Writes benchmarks/results/recompute.json.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from twinview.data.loading.loader import training_batches
from twinview.data.prepare.pack import pack_images
from twinview.engine.setup import build, wrap
from twinview.engine.step import take_step
from twinview.recipe import from_table
from twinview.values import Progress

RESULT = Path(__file__).parent / "results" / "recompute.json"
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "vit_small": ({"use": "timm.encoder", "name": "vit_small_patch16_224"}, 16),
    "resnet50": ({"use": "torchvision.resnet", "name": "resnet50"}, 8),
}


def one(case: str, recomputing: bool, shards: str) -> dict[str, Any]:
    """In this process."""
    encoder, batch_size = CASES[case]
    run = {"steps": 2, "batch_size": batch_size, "precision": "fp32", "activation_checkpointing": recomputing}
    built = build(from_table({
        "views": {"use": "byol.crops", "size": 224}, "encoder": encoder, "loss": [{"use": "byol.image"}], "data": {"shards": shards, "workers": 0},
        "optimizer": {"use": "sgd", "lr": 0.01}, "run": run,
    }))
    batch = list(training_batches(built.recipe, built.dims, built.shards, rank=0, world=1, steps=1))
    engine, gpu, losses, seconds = wrap(built, Path()), torch.cuda.is_available(), [], []
    before = _memory(gpu, reset=True)
    for i in range(2):
        began = time.perf_counter() if gpu else time.process_time()
        losses.append(take_step(built, engine, iter(batch), Progress(i, 2, 0, i / 2), watch=False).numbers()["loss"])
        seconds.append((time.perf_counter() if gpu else time.process_time()) - began)
    return {"memory": _memory(gpu) - before, "seconds": seconds[1], "losses": losses}


def _memory(gpu: bool, *, reset: bool = False) -> int:
    """Bytes at the peak; with `reset`, those that are held now, and the peak is forgotten."""
    if gpu:
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS" if reset else "VmHWM"))


def measured(case: str, recomputing: bool, shards: str) -> dict[str, Any]:
    """In a process of its own."""
    words = [sys.executable, __file__, "--one", case, str(int(recomputing)), shards]
    found: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    return found


def summary(rows: dict[bool, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, and what the one is of the other."""
    table = {name: {key: median(row[key] for row in rows[on]) for key in ("memory", "seconds")} for name, on in (("without", False), ("with", True))}
    return {
        **table,
        "memory_ratio": round(table["with"]["memory"] / table["without"]["memory"], 3),
        "time_ratio": round(table["with"]["seconds"] / table["without"]["seconds"], 3),
        "losses_equal": len({tuple(row["losses"]) for on in rows for row in rows[on]}) == 1,
        "rows": {name: rows[on] for name, on in (("without", False), ("with", True))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], bool(int(args.one[1])), args.one[2])))
        return
    found: dict[str, dict[bool, list[dict[str, Any]]]] = {case: {False: [], True: []} for case in args.cases}
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        (Path(folder) / "images").mkdir()
        for i in range(16):
            Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(f"{folder}/images/{i:02}.jpg")
        shards = str(pack_images(Path(folder) / "images", Path(folder) / "shards").out)
        for _, case, on in tqdm([(i, case, on) for i in range(args.repeats) for case in args.cases for on in (False, True)]):
            found[case][on].append(measured(case, on, shards))
    gpu = torch.cuda.is_available()
    result = {
        "what": "BYOL step, two views of 224 pixels, fp32, one process: ViT-S batch 16, ResNet-50 batch 8",
        "units": "memory: bytes at the peak over those held before the first step; seconds: of the second step",
        "command": f"python benchmarks/recompute.py --repeats {args.repeats} --cases {' '.join(args.cases)}",
        "machine": {"device": torch.cuda.get_device_name() if gpu else platform.machine(), "threads": torch.get_num_threads(),
                    "load_at_end": round(os.getloadavg()[0], 1)},
        "versions": {p: version(p) for p in ("torch", "deepspeed", "timm", "torchvision", "twinview")},
        **{case: summary(rows) for case, rows in found.items()},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({case: {k: v for k, v in summary(rows).items() if k != "rows"} for case, rows in found.items()}, indent=1))


if __name__ == "__main__":
    main()
