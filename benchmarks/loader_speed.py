"""Two 224 px views with BYOL's photometry from JPEGs: images a second of one core, stage by stage, beside other libraries.

    python benchmarks/loader_speed.py shards/camvid-train                        # twinview, torchvision
    pip install simplejpeg augrs-py 'albumentations<1.4' nvidia-dali-cuda130 lightly lightly-train      # whatever is to run beside it
    git worktree add ../before d4fcd04 && python benchmarks/loader_speed.py shards/camvid-train --before ../before

    python benchmarks/loader_speed.py shards/tiled-1920 --rounds 3 --out benchmarks/results/loader_speed_tiled.json

Contestants take turns within one run, on the same JPEGs in memory (twinview's worker reads its own from the shards), one thread, process CPU time,
median of the rounds.  `twinview_stages_us` comes from a run of its own.  An image counts once, for both views.

  decode_jpeg     torchvision's decoder alone: the limit of whatever decodes whole images with it
  simplejpeg      the same by simplejpeg
  twinview        what a data worker does: read, decode, draw, cut, photometry, the batch; with simplejpeg where it is installed
  no_simplejpeg   the same without it
  crops           the same as twinview without [augment]
  device          the same as twinview with `data.augment_on = "device"`
  scaled          the same as twinview with `data.decode = "scaled"`
  multisiam       the same as twinview with views of a sampler that draws image by image (multisiam.iou_crops)
  before...       twinview, crops and device of the checkout that --before names, in a process of its own
  torchvision     transforms.v2 on uint8 tensors: RandomResizedCrop, ColorJitter, grey, GaussianBlur(23), solarize with BYOL's settings
  torchvision_15  the same with a 15 px kernel, which reaches as far as ours
  augrs, albumentations, dali        the same put together by hand (`loader_rivals.py`)
  lightly         lightly.transforms.BYOLTransform as it comes, on PIL images that PIL decodes; float views
  lightly_train   LightlyTrain's transform for SimCLR as it comes (albumentations, OpenCV), on arrays that torchvision decodes; float views

lightly's and LightlyTrain's are what they ship: normalized float views; LightlyTrain's blurs half of the views, and jitters more.
What is not installed is left out with a line.  The result goes to benchmarks/results/loader_speed.json, or to --out.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2

from loader_child import worker
from loader_rivals import BATCH, DISTRIBUTIONS, RIVALS, SIDE, Make, jpeg
from machine import commit, processor
from twinview.data.dataset.open import open_shards
from twinview.data.loading import at_once
from twinview_byol.photometry import Photometry

OUT = Path(__file__).parent / "results" / "loader_speed.json"
OURS = ("twinview", "crops", "device", "no_simplejpeg", "multisiam")
CHILD = Path(__file__).parent / "loader_child.py"


def recipe(shards: str, **tables: dict[str, Any]) -> dict[str, Any]:
    return {
        "views": {"use": "byol.crops", "size": SIDE},
        "encoder": {"use": "torchvision.resnet", "name": "resnet18"},
        "loss": [{"use": "byol.image"}],
        "data": {"shards": shards, "workers": 0, **tables.get("data", {})},
        "optimizer": {"use": "sgd", "lr": 0.1},
        "run": {"steps": 1, "batch_size": BATCH, "device": "cpu"},
        **{name: table for name, table in tables.items() if name != "data"},
    }


def twinview_batches(table: dict[str, Any], simplejpeg: bool = True) -> Make:
    views, epoch = worker(table), Counter[str]()
    if not simplejpeg:
        views._batches().memory._decode = None

    def make(places: Sequence[int]) -> Any:
        epoch["now"] += 1  # fresh draws in every round
        views.collate([(epoch["now"], i) for i in places])

    return make


class Before:
    """The workers of another checkout."""

    def __init__(self, checkout: Path, tables: dict[str, dict[str, Any]]) -> None:
        path = os.pathsep.join([str(checkout.resolve() / "core"), str(checkout.resolve() / "plugins"), *sys.path])
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD)], env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.epoch = 0
        self.say(tables)

    def say(self, what: Any) -> None:
        assert self.process.stdin is not None
        print(json.dumps(what), file=self.process.stdin, flush=True)

    def batches(self, name: str) -> Make:
        def make(places: Sequence[int]) -> float:
            assert self.process.stdout is not None
            self.epoch += 1
            self.say([name, self.epoch, list(places)])
            return float(self.process.stdout.readline())

        return make


def torchvision_batches(files: list[bytes], kernel: int) -> Make:
    def view(blur: float, solarize: float) -> Callable[[Tensor], Tensor]:
        made: Callable[[Tensor], Tensor] = v2.Compose([
            v2.RandomResizedCrop(SIDE, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], blur),
            v2.RandomSolarize(128, solarize),
        ])
        return made

    both = view(1.0, 0.0), view(0.1, 0.2)

    def make(places: Sequence[int]) -> Any:
        decoded = [jpeg(files[i]) for i in places]
        return [torch.stack([transform(image) for image in decoded]) for transform in both]

    return make


def contestants(shards: str, files: list[bytes], before: Path | None) -> dict[str, Make]:
    byol: dict[str, Any] = {"augment": {"use": "byol.photometry"}}
    tables = {"twinview": recipe(shards, **byol), "crops": recipe(shards), "device": recipe(shards, data={"augment_on": "device"}, **byol)}
    made: dict[str, Make] = {name: twinview_batches(table) for name, table in tables.items()}
    made |= {
        "no_simplejpeg": twinview_batches(tables["twinview"], simplejpeg=False),
        "scaled": twinview_batches(recipe(shards, data={"decode": "scaled"}, **byol)),
        "multisiam": twinview_batches(recipe(shards, views={"use": "multisiam.iou_crops", "size": SIDE}, **byol)),
    }
    if before is not None:
        other = Before(before, tables)
        made |= {"before" if name == "twinview" else f"before_{name}": other.batches(name) for name in tables}
    made |= {"torchvision": torchvision_batches(files, 23), "torchvision_15": torchvision_batches(files, 15)}
    for name, build in RIVALS.items():
        try:
            made[name] = build(files)
        except Exception as e:  # of another library, whatever it raises
            print(f"{name} is left out: {type(e).__name__}: {e}")
    return made


def race(made: dict[str, Make], images: int, per_round: dict[str, int], rounds: int) -> dict[str, list[float]]:
    """Microseconds an image of each contestant in each round; a first round warms up, long for twinview, which compiles after some images."""
    taken: dict[str, list[float]] = {name: [] for name in made}
    for r in range(rounds + 1):
        for name, make in made.items():
            n = per_round.get(name, 2 * BATCH) if r or name not in OURS else 10 * BATCH
            places, seconds = [(r * 2 * BATCH + 5 * i) % images for i in range(n)], 0.0
            for at in range(0, n, BATCH):
                start = time.process_time()
                said = make(places[at : at + BATCH])
                seconds += said if isinstance(said, float) else time.process_time() - start
            taken[name].append(seconds / n * 1e6)
    return {name: times[1:] for name, times in taken.items()}


def stages(shards: str, images: int, rounds: int) -> dict[str, float]:
    """Where the time of `twinview` goes, microseconds an image: the functions of a worker, timed as it calls them."""
    views, spent = worker(recipe(shards, augment={"use": "byol.photometry"})), Counter[str]()
    for at in range(0, 10 * BATCH, BATCH):
        views.collate([(0, i % images) for i in range(at, at + BATCH)])
    maker = views._batches()

    def timed(where: Any, name: str, label: str) -> None:
        setattr(where, name, Timed(getattr(where, name), label, spent))

    timed(maker.memory, "pixels", "decode")
    timed(maker, "cut", "cut two views")
    timed(at_once, "read", "read, header")
    timed(maker.calls, "apply_augment", "photometry")
    timed(maker.calls, "draw_augment_batch", "draw photometry")
    timed(maker.calls, "sample_views_batch", "draw views")
    start, n = time.process_time_ns(), 0
    for r in range(rounds):
        places = [(r + 1, (r * 64 + 5 * i) % images) for i in range(2 * BATCH)]
        for at in range(0, len(places), BATCH):
            views.collate(places[at : at + BATCH])
            n += BATCH
    whole = time.process_time_ns() - start
    spent["other"] = whole - sum(spent.values())
    return {name: round(ns / n / 1e3, 1) for name, ns in [*sorted(spent.items()), ("whole", whole)]}


class Timed:
    """A function that counts its time."""

    def __init__(self, inner: Callable[..., Any], label: str, spent: Counter[str]) -> None:
        self.inner, self.label, self.spent = inner, label, spent

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time_ns()
        try:
            return self.inner(*args, **kwargs)
        finally:
            self.spent[self.label] += time.process_time_ns() - start


def device_photometry(batch: int = 256) -> dict[str, float]:
    """Images a second (two views) of `data.augment_on = "device"`, where there is one."""
    part, rng = Photometry(), np.random.default_rng(0)
    views = [torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8, device="cuda") for _ in range(2)]
    drawn = []
    for v in range(2):
        many = [part.draw_augment(v, (SIDE, SIDE), rng) for _ in range(batch)]
        drawn.append({name: torch.stack([d[name] for d in many]) for name in many[0]})
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for pixels, params in zip(views, drawn):
            part.apply_augment(pixels, params)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {"batch": batch, "images_per_second": round(batch / statistics.median(times[2:]), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="a folder of shards of JPEGs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--name", default="", help="what to call the images in the result")
    parser.add_argument("--only", nargs="*", default=[], help="contestants; all that are installed")
    parser.add_argument("--before", type=Path, help="another checkout of twinview")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    opened = open_shards(args.shards)
    files = [opened.read(i, ("jpg",)).fields["jpg"] for i in range(len(opened))]
    made = {name: make for name, make in contestants(args.shards, files, args.before).items() if not args.only or name in args.only}
    taken = race(made, len(files), {"torchvision": 4, "torchvision_15": 8, "lightly": BATCH, "dali": BATCH}, args.rounds)
    height, width = jpeg(files[0]).shape[1:]
    median = {name: statistics.median(times) for name, times in taken.items()}
    kib = sum(map(len, files)) / len(files) / 1024
    others = {name: us for name, us in median.items() if name != "twinview"}
    commits = {"commit": commit()} | ({"before": commit(args.before)} if args.before else {})
    result: dict[str, Any] = {
        **commits,
        "images": {"name": args.name or Path(args.shards).name, "count": len(files), "first": f"{width}x{height}", "mean_kib": round(kib, 1)},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "load": [round(load, 1), round(os.getloadavg()[0], 1)]},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__, **versions(made)},
        "images_per_second_per_core": {name: round(1e6 / us, 1) for name, us in median.items()},
        "spread_us": {name: [round(min(times)), round(max(times))] for name, times in taken.items()},
        "twinview_over": {name: round(us / median["twinview"], 2) for name, us in others.items()} if "twinview" in median else {},
        "twinview_stages_us": stages(args.shards, len(files), args.rounds),
    }
    if torch.cuda.is_available():
        result["device_photometry"] = {"device": torch.cuda.get_device_name(), **device_photometry()}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def versions(made: dict[str, Make]) -> dict[str, str]:
    return {name: version(distribution) for name, distribution in DISTRIBUTIONS.items() if name in made}


if __name__ == "__main__":
    main()
