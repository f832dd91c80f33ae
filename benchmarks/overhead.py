"""What the engine costs: the same BYOL step by a bare PyTorch loop and under twinview, in turn, in one process.

    python benchmarks/overhead.py                     # ResNet-18, two views of 96 pixels, batch 32, fp32, SGD
    python benchmarks/overhead.py --steps 10 --threads 1

Both start from the same weights and see the same batches in memory; their losses are compared step by step, so that it is the same work.
Writes benchmarks/results/overhead.json.
"""
from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18
from tqdm import tqdm

from twinview.data.loader import training_batches
from twinview.data.pack import pack_images
from twinview.engine.build import Built, build, wrap
from twinview.engine.stepper import take_step
from twinview.recipe import from_table
from twinview.values import Batch, Progress

RESULT = Path(__file__).parent / "results" / "overhead.json"
LR, MOMENTUM, TARGET, HIDDEN, OUT = 0.05, 0.9, 0.99, 1024, 128
WARM_UP = 3  # steps that are not timed


class Bare:
    """BYOL written out: no hooks, no parts, no engine."""

    def __init__(self, built: Built) -> None:
        self.online = self.network()
        self.predictor = self.head(OUT)
        weights = {k.removeprefix("online."): v for k, v in built.model.state_dict().items() if k.startswith("online.")}
        parts = {"encoder.": self.online[0], "heads.byol/image/projector.": self.online[1], "heads.byol/image/predictor.": self.predictor}
        for start, module in parts.items():
            module.load_state_dict({k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)})
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.optimizer = torch.optim.SGD([*self.online.parameters(), *self.predictor.parameters()], lr=LR, momentum=MOMENTUM)
        self.mean, self.std = built.model.mean, built.model.std

    def network(self) -> nn.Sequential:
        trunk = resnet18()
        trunk.fc = nn.Identity()
        return nn.Sequential(trunk, self.head(512))

    def head(self, channels: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(channels, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, OUT))

    def step(self, batch: Batch) -> float:
        views = [(v.float() - self.mean) / self.std for v in batch.images]
        predictions = [self.predictor(self.online(v)) for v in views]
        with torch.no_grad():
            projections = [self.target(v) for v in views]
        loss: Tensor = -torch.stack([F.cosine_similarity(predictions[i], projections[1 - i]).mean() for i in (0, 1)]).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), 1 - TARGET)
        return loss.item()


def prepare(folder: Path, batch_size: int, size: int, batches: int) -> tuple[Built, list[Batch]]:
    """The recipe on its device, and batches of noise."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(batch_size):
        Image.fromarray(rng.integers(0, 256, (160, 240, 3), dtype=np.uint8)).save(folder / f"images/{i:04d}.jpg")
    pack_images(folder / "images", folder / "shards")
    recipe = from_table({
        "views": {"use": "byol.crops", "size": size},
        "encoder": {"use": "torchvision.resnet", "name": "resnet18"},
        "loss": [{"use": "byol.image", "hidden": HIDDEN, "channels": OUT}],
        "target": {"momentum": TARGET, "schedule": "constant"},
        "data": {"shards": str(folder / "shards"), "workers": 0},
        "optimizer": {"use": "sgd", "lr": LR, "momentum": MOMENTUM},
        "schedule": {"use": "constant"},
        "run": {"steps": 10**6, "batch_size": batch_size, "device": "cpu"},
    })
    built = build(recipe)
    return built, list(training_batches(built.recipe, built.dims, built.shards, rank=0, world=1, steps=batches))


def timed(work: Callable[[int], float], step: int) -> tuple[float, float, float]:
    """Loss, wall seconds, CPU seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    loss = work(step)
    return loss, time.perf_counter() - wall, time.process_time() - cpu


def measure(steps: int, batch_size: int, size: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        built, batches = prepare(Path(folder), batch_size, size, batches=4)
        bare = Bare(built)
        engine = wrap(built, Path(folder))
    works: dict[str, Callable[[int], float]] = {
        "bare": lambda i: bare.step(batches[i % len(batches)]),
        "twinview": lambda i: take_step(built, engine, iter([batches[i % len(batches)]]), Progress(i, 10**6, 0, 0.0), watch=False).numbers()["loss"],
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in works}
    for i in tqdm(range(WARM_UP + steps), unit=" step of each"):
        for name in sorted(works, reverse=bool(i % 2)):  # each goes first as often as the other
            found[name].append(timed(works[name], i))
    gap = max(abs(a[0] - b[0]) for a, b in zip(found["bare"], found["twinview"], strict=True))
    table: dict[str, object] = {}
    for name, rows in found.items():
        wall, cpu = ([row[k] for row in rows[WARM_UP:]] for k in (1, 2))
        low, _, high = quantiles(wall, n=4)
        table[name] = {"wall_median_s": median(wall), "wall_quartiles_s": [low, high], "cpu_median_s": median(cpu)}
    pairs = list(zip(found["bare"][WARM_UP:], found["twinview"][WARM_UP:], strict=True))
    return {
        **table,
        "overhead_wall": median(t[1] / b[1] for b, t in pairs) - 1,
        "overhead_cpu": median(t[2] / b[2] for b, t in pairs) - 1,
        "largest_loss_gap": gap,
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = {
        "what": f"ResNet-18 BYOL step, two views of {args.size} pixels, batch {args.batch_size}, fp32, SGD, one CPU process",
        "command": f"python benchmarks/overhead.py --steps {args.steps} --batch-size {args.batch_size} --size {args.size} --threads {args.threads}",
        "machine": {"processor": processor(), "threads": args.threads, "load_at_start": round(os.getloadavg()[0], 1)},
        "versions": {p: version(p) for p in ("torch", "deepspeed", "twinview")},
        "steps": args.steps,
        **measure(args.steps, args.batch_size, args.size),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
