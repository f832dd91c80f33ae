"""A training step of a method, ours beside lightly's implementation of the same: seconds and peak memory, each in a process of its own.

    python benchmarks/method_step.py                                    # every method of METHODS, ours alone
    python benchmarks/method_step.py simclr moco_v2 --lightly OTHER/bin/python   # beside lightly, installed in another environment

ResNet-18, 96 pixels, batch 32, one thread, fp32, random images, SGD: forward, backward, optimizer, averages, queues; no data loading.  Seconds are
the processor's, which other work on the machine changes less than the clock's.  The two take turns, `--rounds` times; the smallest median of a
round counts.  A method joins by its name in METHODS, and in LIGHTLY where lightly has it.  Writes rows with the commit into
benchmarks/results/method_step.json.
"""
from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

RESULT = Path(__file__).parent / "results" / "method_step.json"
SIDE, BATCH, IMAGES, WARM_UP = 96, 32, 8192, 1
LR, MOMENTUM = 0.01, 0.99

TWO_WAYS: dict[str, Any] = {"use": "byol.crops", "size": SIDE}
ONE_WAY = {**TWO_WAYS, "pairs": "one_way"}
BEFORE = {"momentum": MOMENTUM, "schedule": "constant", "update": "before_forward"}
AFTER = {"momentum": MOMENTUM, "schedule": "constant"}
METHODS: dict[str, dict[str, Any]] = {  # name -> the tables of a recipe in which it differs from the others
    "simclr": {"views": TWO_WAYS, "target": {"momentum": 0.0}, "run": {"views_together": True}, "loss": [{"use": "simclr.image", "layers": 2}]},
    "moco": {"views": ONE_WAY, "target": BEFORE, "loss": [{"use": "moco.image", "projector": "linear", "queue": 4096, "temperature": 0.07}]},
    "moco_v2": {"views": ONE_WAY, "target": BEFORE, "loss": [{"use": "moco.image", "queue": 4096}]},
    "moco_v3": {"views": TWO_WAYS, "target": BEFORE, "loss": [{"use": "moco_v3.image"}]},
    "byol": {"views": TWO_WAYS, "target": AFTER, "loss": [{"use": "byol.image"}]},
    "simsiam": {"views": TWO_WAYS, "target": {"momentum": 0.0}, "loss": [{"use": "simsiam.image"}]},
    "instdist": {"views": {**TWO_WAYS, "views": 1}, "target": {"momentum": 0.0}, "loss": [{"use": "instdist.image"}]},
}


# ---- ours
def ours(name: str) -> Callable[[], float]:
    """A function that takes one step and gives its loss."""
    import numpy as np
    import torch

    from twinview.assembly import assemble
    from twinview.engine.optimizer import make_optimizer
    from twinview.model import Siamese
    from twinview.recipe import read
    from twinview.values import Batch, Geometry, Progress

    tables = METHODS[name]
    recipe = read({
        "encoder": {"use": "torchvision.resnet", "name": "resnet18"}, "data": {"shards": "none"},
        "optimizer": {"use": "sgd", "lr": LR, "momentum": 0.9, "weight_decay": 1e-4, "decay_norm_bias": True},
        **tables, "run": {"steps": 1, "batch_size": BATCH, **tables.get("run", {})},
    })  # fmt: skip
    assembly = assemble(recipe)
    encoder = assembly.encoder()
    model = Siamese(assembly, assembly.dims(encoder, IMAGES), encoder).train()
    optimizer, _ = make_optimizer(assembly, model.online)
    drawn = [assembly.calls.sample_views(size=(128, 128), rng=np.random.default_rng(i)) for i in range(BATCH)]
    boxes, flips, source = (torch.stack([getattr(g, name) for g in drawn]) for name in ("boxes", "flips", "source"))
    geometry = Geometry(boxes, flips, source, drawn[0].sizes, drawn[0].pairs)
    images = tuple(torch.randint(0, 256, (BATCH, 3, *size), dtype=torch.uint8) for size in geometry.sizes)
    ids = torch.arange(BATCH)
    batch = Batch(tuple(map(str, range(BATCH))), ids, ids, 0, images, geometry, (None,) * len(images))

    def step() -> float:
        progress = Progress(0, 1, 0, 0.0)
        if recipe.target.update == "before_forward":
            model.follow(recipe.target.momentum)
        outcome = model(batch, progress)
        optimizer.zero_grad()
        outcome.loss.backward()
        settled = outcome.step.settle()
        assembly.calls.after_micro_batch(branches=model.branches, step=settled, progress=progress)
        optimizer.step()
        if recipe.target.update == "after_step":
            model.follow(recipe.target.momentum)
        assembly.calls.after_step(branches=model.branches, step=settled, progress=progress)
        return float(outcome.loss.detach())

    return step


# ---- lightly's, as its documentation has each method, at the same widths
def lightlys(name: str) -> Callable[[], float]:
    """A function that takes one step of lightly's parts and gives its loss."""
    import torch
    import torchvision
    from lightly import loss as losses  # type: ignore[import-not-found, unused-ignore]
    from lightly.models import modules as heads  # type: ignore[import-not-found, unused-ignore]
    from lightly.models.utils import deactivate_requires_grad, update_momentum  # type: ignore[import-not-found, unused-ignore]
    from torch import nn

    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1], nn.Flatten())
    parts: dict[str, Any] = {
        "simclr": (lambda: heads.SimCLRProjectionHead(512, 512, 128), None, lambda: losses.NTXentLoss(temperature=0.1)),
        "moco_v2": (lambda: heads.MoCoProjectionHead(512, 512, 128), None, lambda: losses.NTXentLoss(temperature=0.2, memory_bank_size=(4096, 128))),
        "byol": (lambda: heads.BYOLProjectionHead(512, 4096, 256), lambda: heads.BYOLPredictionHead(256, 4096, 256), losses.NegativeCosineSimilarity),
        "simsiam": (lambda: heads.SimSiamProjectionHead(512, 2048, 2048), lambda: heads.SimSiamPredictionHead(2048, 512, 2048),
                    losses.NegativeCosineSimilarity),
    }  # fmt: skip
    projector, predictor, criterion = parts[name]
    online = nn.Sequential(backbone, projector())
    averaged: Any = None
    if name in ("moco_v2", "byol"):
        averaged = copy.deepcopy(online)
        deactivate_requires_grad(averaged)
    predict, compare = predictor() if predictor else nn.Identity(), criterion()
    optimizer = torch.optim.SGD([*online.parameters(), *predict.parameters()], lr=LR, momentum=0.9, weight_decay=1e-4)
    views = [torch.randn(BATCH, 3, SIDE, SIDE) for _ in range(2)]

    def step() -> float:
        if averaged is not None:
            update_momentum(online, averaged, MOMENTUM)
        optimizer.zero_grad()
        if name == "moco_v2":
            with torch.no_grad():
                key = averaged(views[1])
            found = compare(online(views[0]), key)
        elif name == "simclr":
            found = compare(online(views[0]), online(views[1]))
        else:
            z = [online(view) for view in views]
            with torch.no_grad():
                goal = [x.detach() for x in z] if averaged is None else [averaged(view) for view in views]
            found = (compare(predict(z[0]), goal[1]) + compare(predict(z[1]), goal[0])) / 2
        found.backward()
        optimizer.step()
        return float(found.detach())

    return step


LIGHTLY = ("simclr", "moco_v2", "byol", "simsiam")


def child(who: str, name: str, steps: int) -> None:
    """Print what a process of one implementation measures."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    step, seconds, last = (ours if who == "ours" else lightlys)(name), [], 0.0
    for _ in range(WARM_UP + steps):
        began = time.process_time()
        last = step()
        seconds.append(time.process_time() - began)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": median(seconds[WARM_UP:]), "memory_mb": round(most), "loss": last, "torch": torch.__version__}))


def lines_of(name: str) -> int:
    """Lines of the plugin that has the method's loss."""
    plugin = METHODS[name]["loss"][0]["use"].partition(".")[0]
    folder = Path(__file__).resolve().parents[1] / "plugins" / f"twinview_{plugin}"
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("methods", metavar="METHOD", nargs="*", default=[], help=f"of {', '.join(METHODS)} (default: all)")
    parser.add_argument("--lightly", metavar="PYTHON", help="an interpreter whose environment has lightly")
    parser.add_argument("--steps", type=int, default=5, help="of a round (default: 5)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("WHO", "METHOD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        who, name = args.child
        child(who, name, args.steps)
        return
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        parser.error(f"no method {unknown[0]!r}; there is: {', '.join(METHODS)}")
    from machine import commit, processor

    rows: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    for name in args.methods or METHODS:
        pythons = {"ours": sys.executable, **({"lightly": args.lightly} if args.lightly and name in LIGHTLY else {})}
        found: dict[str, list[dict[str, Any]]] = {who: [] for who in pythons}
        for _ in range(args.rounds):
            for who, python in pythons.items():
                command = [python, __file__, "--child", who, name, "--steps", str(args.steps)]
                done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
                if done.returncode:
                    sys.exit(f"{name}, {who}: {done.stderr.strip().splitlines()[-1]}")
                found[who].append(json.loads(done.stdout.splitlines()[-1]))
        row: dict[str, Any] = {"lines": lines_of(name), "commit": commit(), "seed": 0, "processor": processor()}
        for who, runs in found.items():
            least = {key: min(run[key] for run in runs) for key in ("seconds", "memory_mb")}
            row[who] = {"seconds": round(least["seconds"], 3), "memory_mb": least["memory_mb"], "torch": runs[0]["torch"]}
        rows[name] = row
        print(name, json.dumps(row))
        RESULT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
