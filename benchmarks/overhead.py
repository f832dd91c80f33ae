"""What the engine costs: the same BYOL step by a bare PyTorch loop and under twinview, in turn, in one process or on the same ranks.

    python benchmarks/overhead.py                     # all of CASES
    python benchmarks/overhead.py --case resnet18 --steps 10 --threads 1

The bare loop is torchvision's or timm's own network with an optimizer of torch's, on several ranks under DistributedDataParallel.  Both start from
the same weights and see the same batches in memory; their losses are compared step by step, so that it is the same work.  On several ranks the
time without the exchange of gradients is taken too: what is missing is communication.  Writes benchmarks/results/overhead.json, in which cases
that were not measured stay as they are.
"""
from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

from children import in_child
from machine import commit, processor
from twinview.assembly import assemble
from twinview.data.loading.loader import training_batches
from twinview.data.prepare.pack import pack_images
from twinview.engine.distributed.process import quiet_deepspeed
from twinview.engine.setup import TrainSetup, build, wrap
from twinview.engine.step import take_step
from twinview.recipe import Recipe, from_table
from twinview.values import Batch, Progress

RESULT = Path(__file__).parent / "results" / "overhead.json"
LR, MOMENTUM, TARGET, HIDDEN, OUT = 0.05, 0.9, 0.99, 1024, 128
WARM_UP = 3  # steps that are not timed


class Case(NamedTuple):
    """A network, the side of its views, images in all, ranks."""

    network: str
    size: int
    batch_size: int
    ranks: int = 1


CASES = {
    "resnet18": Case("resnet18", 96, 32),
    "resnet18, small batch": Case("resnet18", 96, 4),
    "resnet18, two ranks": Case("resnet18", 96, 32, 2),
    "vit": Case("vit_small_patch16_224", 128, 16),
    "vit, small batch": Case("vit_small_patch16_224", 128, 2),
    "vit, two ranks": Case("vit_small_patch16_224", 128, 16, 2),
}


class Bare:
    """BYOL written out: no hooks, no parts, no engine."""

    def __init__(self, case: Case, built: TrainSetup) -> None:
        weights = {k.removeprefix("online."): v for k, v in built.model.state_dict().items() if k.startswith("online.")}
        trunk = self.trunk(case, built)
        projector, predictor = (self.head(weights, f"heads.byol/image/{name}.") for name in ("projector", "predictor"))
        self.target = nn.Sequential(copy.deepcopy(trunk), copy.deepcopy(projector)).requires_grad_(False)
        self.online = nn.ModuleList([nn.Sequential(trunk, projector), predictor])
        self.model: nn.Module = _Online(self.online)
        if case.ranks > 1:
            with warnings.catch_warnings(action="ignore"):  # of an option whose successor does something else
                self.model = DistributedDataParallel(self.model, broadcast_buffers=False)
        self.optimizer = torch.optim.SGD(self.online.parameters(), lr=LR, momentum=MOMENTUM)
        self.mean, self.std = built.model.mean, built.model.std

    @staticmethod
    def trunk(case: Case, built: TrainSetup) -> nn.Module:
        """The library's own network, with the weights that twinview's has."""
        trunk: nn.Module
        if case.network == "resnet18":
            trunk = resnet18()
            trunk.fc = nn.Identity()
        else:
            trunk = timm.create_model(case.network, img_size=case.size, num_classes=0, global_pool="avg", fc_norm=False)
        encoder: Any = built.model.online.encoder
        found = encoder.published((case.size, case.size)).tensors
        trunk.load_state_dict(found, strict=case.network != "resnet18")
        return trunk

    @staticmethod
    def head(weights: dict[str, Tensor], name: str) -> nn.Sequential:
        own = {k.removeprefix(name): v for k, v in weights.items() if k.startswith(name)}
        width = own["0.weight"].shape[1]
        head = nn.Sequential(nn.Linear(width, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, OUT))
        head.load_state_dict(own)
        return head

    def step(self, batch: Batch, exchange: bool = True) -> float:
        alone = contextlib.nullcontext() if exchange or not isinstance(self.model, DistributedDataParallel) else self.model.no_sync()
        with alone:
            views = [(v.float() - self.mean) / self.std for v in batch.images]
            predictions = self.model(views)
            with torch.no_grad():
                projections = [self.target(v) for v in views]
            loss: Tensor = -torch.stack([F.cosine_similarity(predictions[i], projections[1 - i]).mean() for i in (0, 1)]).mean()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.online[0].parameters()), 1 - TARGET)
        return loss.item()


class _Online(nn.Module):
    """Both views in one forward, as DistributedDataParallel wants it."""

    def __init__(self, branch: nn.ModuleList) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        return [self.branch[1](self.branch[0](v)) for v in views]


def recipe(case: Case, shards: Path) -> Recipe:
    encoder: dict[str, Any] = {"use": "timm.encoder", "name": case.network, "img_size": case.size}
    if case.network == "resnet18":
        encoder = {"use": "torchvision.resnet", "name": "resnet18"}
    return from_table({
        "views": {"use": "byol.crops", "size": case.size},
        "encoder": encoder,
        "loss": [{"use": "byol.image", "hidden": HIDDEN, "channels": OUT}],
        "target": {"momentum": TARGET, "schedule": "constant"},
        "data": {"shards": str(shards), "workers": 0},
        "optimizer": {"use": "sgd", "lr": LR, "momentum": MOMENTUM},
        "schedule": {"use": "constant"},
        "run": {"steps": 10**6, "batch_size": case.batch_size, "device": "cpu", "sync_batchnorm": False},
    })


def noise(folder: Path) -> Path:
    """Shards of images of noise, made in `folder`: enough for a batch of every case."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(max(case.batch_size for case in CASES.values())):
        Image.fromarray(rng.integers(0, 256, (160, 240, 3), dtype=np.uint8)).save(folder / f"images/{i:04d}.jpg")
    pack_images(folder / "images", folder / "shards")
    return folder / "shards"


def timed(work: Callable[[int], float], step: int) -> tuple[float, float, float]:
    """Loss, wall seconds, CPU seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    loss = work(step)
    return loss, time.perf_counter() - wall, time.process_time() - cpu


def measure(case: Case, made: Recipe, steps: int, threads: int) -> dict[str, Any]:
    """What rank 0 saw."""
    torch.set_num_threads(threads)
    built = build(made)
    batches = list(training_batches(built.recipe, built.dims, built.shards, rank=built.ranks.rank, world=built.ranks.world, steps=4))
    bare = Bare(case, built)
    engine = wrap(built, Path())

    def twinview(i: int) -> float:
        progress = Progress(i, 10**6, 0, 0.0)
        return take_step(built, engine, iter([batches[i % len(batches)]]), progress, watch=False).numbers()["loss"]

    def without_exchange(i: int) -> float:
        engine.enable_backward_allreduce = False
        loss = twinview(i)
        engine.enable_backward_allreduce = True
        return loss

    def bare_without_exchange(i: int) -> float:
        return bare.step(batches[i % len(batches)], exchange=False)

    found = run({"bare": lambda i: bare.step(batches[i % len(batches)]), "twinview": twinview}, steps)
    gap = max(abs(a[0] - b[0]) for a, b in zip(found["bare"], found["twinview"], strict=True))
    if built.ranks.world > 1:  # at the end: without it ranks drift apart
        found |= run({"bare, no exchange": bare_without_exchange, "twinview, no exchange": without_exchange}, steps)
    table: dict[str, Any] = {name: summary(rows[WARM_UP:]) for name, rows in found.items()}
    pairs = list(zip(found["bare"][WARM_UP:], found["twinview"][WARM_UP:], strict=True))
    table["overhead_wall"] = median(t[1] / b[1] for b, t in pairs) - 1
    table["overhead_cpu"] = median(t[2] / b[2] for b, t in pairs) - 1
    table["largest_loss_gap"] = gap
    if built.ranks.world > 1:
        for name in ("bare", "twinview"):
            table[f"communication_share_{name}"] = 1 - table[f"{name}, no exchange"]["wall_median_s"] / table[name]["wall_median_s"]
    return table


def run(works: dict[str, Callable[[int], float]], steps: int) -> dict[str, list[tuple[float, float, float]]]:
    """Each by turns; each goes first as often as the other."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in works}
    for i in range(WARM_UP + steps):
        for name in sorted(works, reverse=bool(i % 2)):
            found[name].append(timed(works[name], i))
    return found


def summary(rows: list[tuple[float, float, float]]) -> dict[str, Any]:
    wall, cpu = ([row[k] for row in rows] for k in (1, 2))
    low, _, high = quantiles(wall, n=4)
    return {"wall_median_s": median(wall), "wall_quartiles_s": [low, high], "cpu_median_s": median(cpu)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", action="append", choices=CASES, help="again for several (default: all)")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all ranks together")
    args = parser.parse_args()
    quiet_deepspeed("cpu")
    rows = {} if not RESULT.is_file() else {row["case"]: row for row in json.loads(RESULT.read_text())["cases"]}
    with tempfile.TemporaryDirectory() as name:
        shards = noise(Path(name))
        for title in args.case or CASES:
            case = CASES[title]
            made = recipe(case, shards)
            assemble(made)  # imports the methods
            threads = max(1, args.threads // case.ranks)
            taken: dict[str, Any] = {"threads_of_a_rank": threads, "steps": args.steps, "load_at_start": round(os.getloadavg()[0], 1)}
            taken |= {"cores_allowed": sorted(os.sched_getaffinity(0)), "commit": commit()}
            found = in_child(case.ranks, functools.partial(measure, case, made, args.steps, threads))
            rows[title] = {"case": title, **case._asdict(), **taken, **found}
            print(json.dumps(rows[title], indent=1), flush=True)
            write(rows)


def write(rows: dict[str, dict[str, Any]]) -> None:
    """Cases that were not measured this time stay as they were."""
    result = {
        "what": "BYOL step of two views, fp32, SGD, on the CPU: a bare loop of torch's, and twinview",
        "command": f"python {' '.join(['benchmarks/overhead.py', *sys.argv[1:]])}",
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "versions": {p: version(p) for p in ("torch", "deepspeed", "timm", "twinview")},
        "cases": [rows[title] for title in CASES if title in rows],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
