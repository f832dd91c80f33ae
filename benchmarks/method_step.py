"""A training step of a method, ours beside lightly's implementation of the same: seconds and peak memory, each in a process of its own.

    python benchmarks/method_step.py                                    # every method of METHODS, ours alone
    python benchmarks/method_step.py simclr moco_v2 --lightly OTHER/bin/python   # beside lightly, installed in another environment
    python benchmarks/method_step.py --print                            # the rows that are there, as the table of docs/methods/all.md has them

ResNet-18 and its last map (with a decoder at stride 4 for the methods that segment), or a ViT of width 192, depth 4 and patches of 8 pixels; 96
pixels, batch 16, one thread, fp32, random images, SGD: forward, backward, optimizer, averages, queues; no data loading, and what comes before an
epoch is not counted.  Seconds are the processor's, which other work on the machine changes less than the clock's.  The two take turns, `--rounds`
times; the smallest median of a round counts.  A method joins by its name in METHODS, and in LIGHTLY where lightly has it.  Writes rows with the
commit into benchmarks/results/method_step.json.
"""
from __future__ import annotations

import argparse
import copy
import importlib
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
SIDE, BATCH, IMAGES, CLASSES, WARM_UP = 96, 16, 8192, 1000, 1
LR, MOMENTUM = 0.01, 0.99

TWO_WAYS: dict[str, Any] = {"use": "byol.crops", "size": SIDE}
ONE_WAY = {**TWO_WAYS, "pairs": "one_way"}
BEFORE = {"momentum": MOMENTUM, "schedule": "constant", "update": "before_forward"}
AFTER = {"momentum": MOMENTUM, "schedule": "constant"}
NONE = {"momentum": 0.0}
RESNET = {"use": "torchvision.resnet", "name": "resnet18"}
DECODED = {**RESNET, "decoder": 128, "cells": "d2"}
VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 192, "depth": 4, "heads": 3, "init": "mae"}
WHOLE = {"use": "densesiam.crop_and_whole", "size": [SIDE, SIDE]}
SAMPLED = {"use": "densesiam.grid_sample"}
QUEUED = {"use": "moco.image", "queue": 4096}
METHODS: dict[str, dict[str, Any]] = {  # name -> the tables of a recipe in which it differs from the others; the last loss is its own
    "simclr": {"views": TWO_WAYS, "target": NONE, "run": {"views_together": True}, "loss": [{"use": "simclr.image", "layers": 2}]},
    "moco": {"views": ONE_WAY, "target": BEFORE, "loss": [{**QUEUED, "projector": "linear", "temperature": 0.07}]},
    "moco_v2": {"views": ONE_WAY, "target": BEFORE, "loss": [QUEUED]},
    "moco_v3": {"views": TWO_WAYS, "target": BEFORE, "loss": [{"use": "moco_v3.image"}]},
    "byol": {"views": TWO_WAYS, "target": AFTER, "loss": [{"use": "byol.image"}]},
    "simsiam": {"views": TWO_WAYS, "target": NONE, "loss": [{"use": "simsiam.image"}]},
    "instdist": {"views": {**TWO_WAYS, "views": 1}, "target": NONE, "loss": [{"use": "instdist.image"}]},
    "swav": {
        "views": {"use": "swav.multi_crop", "size": SIDE, "local": 6, "local_size": 48}, "target": NONE, "run": {"views_together": True},
        "loss": [{"use": "swav.prototypes", "frozen": 0}],
    },
    "mae": {
        "views": {**TWO_WAYS, "views": 1}, "masks": {"use": "masks.random", "ratio": 0.75}, "target": NONE,
        "encoder": {**VIT, "positions": "sine_column"}, "loss": [{"use": "mae.pixels", "width": 128, "depth": 4, "attention_heads": 4}],
    },
    "densecl": {
        "views": ONE_WAY, "align": {"use": "densecl.correspondence"}, "target": BEFORE,
        "loss": [{**QUEUED, "weight": 0.5}, {"use": "densecl.dense", "weight": 0.5, "queue": 4096}],
    },
    "pixpro": {"views": TWO_WAYS, "target": BEFORE, "loss": [{"use": "pixpro.pixels"}]},
    "resim": {"views": {"use": "resim.crops", "size": SIDE}, "target": BEFORE, "loss": [QUEUED, {"use": "resim.windows"}]},
    "detco": {
        "views": {"use": "detco.global_and_patches", "size": SIDE, "patch_size": 32}, "target": BEFORE, "run": {"views_together": True},
        "loss": [{"use": "detco.levels", "queue": 4096}],
    },
    "multisiam": {
        "views": {"use": "multisiam.iou_crops", "size": SIDE}, "align": {"use": "multisiam.roi"}, "target": AFTER,
        "loss": [{"use": "byol.image", "weight": 0.5}, {"use": "multisiam.clusters", "weight": 0.5}],
    },
    "densesiam": {
        "views": TWO_WAYS, "align": {**SAMPLED, "grid": 7}, "target": NONE,
        "loss": [{"use": "simsiam.image", "weight": 0.5}, {"use": "densesiam.region", "weight": 0.1}, {"use": "densesiam.pixel", "weight": 0.5}],
    },
    "densesiam_segments": {
        "views": WHOLE, "encoder": DECODED, "align": SAMPLED, "target": NONE,
        "head": [{"use": "densesiam.projector", "name": "clusters", "clusters": 27}],
        "loss": [
            {"use": "densesiam.pixel", "head": "clusters", "similarity": "cross_entropy", "predictor_hidden": 128, "auxiliary": 128},
            {"use": "densesiam.region", "head": "clusters", "weight": 0.1},
            {"use": "densesiam.segment", "head": "clusters"},
        ],
    },
    "siameseim": {
        "views": {"use": "siameseim.crops", "size": SIDE}, "masks": {"use": "siameseim.blocks"},
        "encoder": {**VIT, "positions": "sine_row", "final_norm": False},
        "align": {"use": "siameseim.relative", "depth": 2, "attention_heads": 4}, "target": BEFORE,
        "loss": [{"use": "siameseim.dense", "channels": 192, "attention_heads": 4, "negative_weight": 0.08}],
    },
    "iic": {
        "views": {"use": "iic.pair", "size": SIDE, "zoom": 0.8}, "encoder": {"use": "iic.segmentation_net"}, "target": NONE,
        "align": {**SAMPLED, "points": "online"}, "loss": [{"use": "iic.mutual_information", "grid": "cells", "displacement": 10}],
    },
    "picie": {"views": WHOLE, "encoder": DECODED, "align": SAMPLED, "target": NONE, "loss": [{"use": "picie.clusters", "initial": BATCH}]},
    "deepcluster": {
        "views": {**TWO_WAYS, "views": 1}, "target": NONE,
        "loss": [{"use": "deepcluster.images", "clusters": 8, "components": 8, "hidden": [4096, 4096], "size": [SIDE, SIDE]}],
    },
    "deepcluster_cells": {"views": WHOLE, "encoder": DECODED, "target": NONE, "loss": [{"use": "deepcluster.cells", "initial": BATCH}]},
    "supervised": {"views": {**TWO_WAYS, "views": 1}, "target": NONE, "loss": [{"use": "supervised.classes"}]},
}  # fmt: skip


# ---- ours
def ours(name: str) -> Callable[[], float]:
    """A function that takes one step and gives its loss."""
    import numpy as np
    import torch

    from twinview.assembly import assemble
    from twinview.data.loading.item import Item
    from twinview.data.loading.stacking import collate
    from twinview.engine.optimizer import make_optimizer
    from twinview.model import make_model
    from twinview.recipe import read
    from twinview.testing.combinations import OneBatch
    from twinview.values import Progress

    tables = METHODS[name]
    recipe = read({
        "encoder": RESNET, "data": {"shards": "none"},
        "optimizer": {"use": "sgd", "lr": LR, "momentum": 0.9, "weight_decay": 1e-4, "decay_norm_bias": True},
        **tables, "run": {"steps": 1, "batch_size": BATCH, **tables.get("run", {})},
    })  # fmt: skip
    assembly = assemble(recipe)
    model = make_model(assembly, IMAGES, CLASSES).train()
    optimizer, _ = make_optimizer(assembly, model.online)
    items = []
    for i in range(BATCH):
        rng = np.random.default_rng(i)
        geometry = assembly.calls.sample_views(size=(128, 128), rng=rng)
        nothing: tuple[torch.Tensor | None, ...] = (None,) * len(geometry.sizes)
        hidden = nothing
        if assembly.has("make_masks"):
            hidden = assembly.calls.make_masks(geometry=geometry, grids=model.dims.grids, rng=rng) or nothing
        images = tuple(torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in geometry.sizes)
        items.append(Item(str(i), i, i, 0, images, geometry, hidden, None, {"class": torch.tensor(i)}))
    batch = collate(items)
    branches = model.branches._replace(reset=lambda part, head: None)
    for label in assembly.answers("before_epoch"):  # labels of an epoch
        once = {"data": OneBatch(model, batch), "progress": Progress(0, 1, 0, 0.0), "rng": np.random.default_rng(0)}
        assembly.only("before_epoch", label)(branches=branches, **once)

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

    maps = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ntxent = losses.NTXentLoss
    parts: dict[str, Any] = {
        "simclr": (lambda: heads.SimCLRProjectionHead(512, 512, 128), None, lambda: ntxent(temperature=0.1)),
        "moco_v2": (lambda: heads.MoCoProjectionHead(512, 512, 128), None, lambda: ntxent(temperature=0.2, memory_bank_size=(4096, 128))),
        "byol": (lambda: heads.BYOLProjectionHead(512, 4096, 256), lambda: heads.BYOLPredictionHead(256, 4096, 256), losses.NegativeCosineSimilarity),
        "simsiam": (lambda: heads.SimSiamProjectionHead(512, 2048, 2048), lambda: heads.SimSiamPredictionHead(2048, 512, 2048),
                    losses.NegativeCosineSimilarity),
        "densecl": (lambda: heads.DenseCLProjectionHead(512, 512, 128), None, lambda: ntxent(temperature=0.2, memory_bank_size=(4096, 128))),
        "swav": (lambda: heads.SwaVProjectionHead(512, 2048, 128), lambda: heads.SwaVPrototypes(128, 3000), losses.SwaVLoss),
    }  # fmt: skip
    if name == "mae":
        return mae_step()
    projector, predictor, criterion = parts[name]
    online: Any = nn.Sequential(maps, pool, projector())
    if name == "densecl":
        online = nn.ModuleList([maps, pool, projector(), projector()])
    averaged: Any = None
    if name in ("moco_v2", "byol", "densecl"):
        averaged = copy.deepcopy(online)
        deactivate_requires_grad(averaged)
    predict: Any = predictor() if predictor else nn.Identity()
    compare, compare_cells = criterion(), criterion()
    optimizer = torch.optim.SGD([*online.parameters(), *predict.parameters()], lr=LR, momentum=0.9, weight_decay=1e-4)
    views = [torch.randn(BATCH, 3, SIDE, SIDE) for _ in range(2)]
    small = [torch.randn(BATCH, 3, SIDE // 2, SIDE // 2) for _ in range(6)]

    def densecl() -> Any:
        from lightly.models.utils import select_most_similar  # type: ignore[import-not-found, unused-ignore]

        def seen(branch: Any, view: torch.Tensor) -> list[torch.Tensor]:
            found = branch[0](view)
            cells = found.flatten(2).mT
            return [cells, branch[2](branch[1](found)), branch[3](cells)]

        query, key = seen(online, views[0]), []
        with torch.no_grad():
            key = seen(averaged, views[1])
        dense = select_most_similar(query[0], key[0], key[2])
        return 0.5 * compare(query[1], key[1]) + 0.5 * compare_cells(query[2].flatten(0, 1), dense.flatten(0, 1))

    def swav() -> Any:
        predict.normalize()
        scores = [predict(nn.functional.normalize(online(view), dim=1)) for view in (*views, *small)]
        return compare(scores[:2], scores[2:])

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
        elif name in ("densecl", "swav"):
            found = {"densecl": densecl, "swav": swav}[name]()
        else:
            z = [online(view) for view in views]
            with torch.no_grad():
                goal = [x.detach() for x in z] if averaged is None else [averaged(view) for view in views]
            found = (compare(predict(z[0]), goal[1]) + compare(predict(z[1]), goal[0])) / 2
        found.backward()
        optimizer.step()
        return float(found.detach())

    return step


def mae_step() -> Callable[[], float]:
    """The same of MAE, with the encoder and the decoder that lightly builds on timm's."""
    import timm
    import torch
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM  # type: ignore[import-not-found, unused-ignore]

    from lightlys_mae import lightlys_mae

    vit: Any = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, patch_size=8, embed_dim=192, depth=4, num_heads=3, num_classes=0)
    encoder = MaskedVisionTransformerTIMM(vit)
    patches = vit.patch_embed.num_patches
    decoder = MAEDecoderTIMM(patches, 8, embed_dim=192, decoder_embed_dim=128, decoder_depth=4, decoder_num_heads=4)
    optimizer = torch.optim.SGD([p for m in (encoder, decoder) for p in m.parameters() if p.requires_grad], lr=LR, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(BATCH, 3, SIDE, SIDE)

    def step() -> float:
        optimizer.zero_grad()
        found: Any = lightlys_mae(encoder, decoder, images, 8)
        found.backward()
        optimizer.step()
        return float(found.detach())

    return step


LIGHTLY = ("simclr", "moco_v2", "byol", "simsiam", "swav", "mae", "densecl")


def measured(who: str, name: str, steps: int) -> dict[str, Any]:
    """What this process measures."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    step, seconds, last = (ours if who == "ours" else lightlys)(name), [], 0.0
    for _ in range(WARM_UP + steps):
        began = time.process_time()
        last = step()
        seconds.append(time.process_time() - began)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": median(seconds[WARM_UP:]), "memory_mb": round(most), "loss": last, "torch": torch.__version__}


def serve(who: str, steps: int) -> None:
    """For each method on a line of stdin, a line with what a process measures that is forked from this one, which has imported the libraries."""
    imported = ("twinview.testing.combinations", "timm", "torchvision") if who == "ours" else ("lightly.loss", "lightly.models.modules")
    for library in imported:
        importlib.import_module(library)
    for name in map(str.strip, sys.stdin):
        pid = os.fork()
        if pid == 0:
            print(json.dumps(measured(who, name, steps)), flush=True)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            print("null", flush=True)


def begun(who: str, python: str, steps: int) -> subprocess.Popen[str]:
    """The server of an implementation."""
    command = [python, "-W", "ignore", __file__, "--serve", who, "--steps", str(steps)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def asked(server: subprocess.Popen[str], name: str) -> dict[str, Any] | None:
    """What it measures of a method; None where that failed."""
    assert server.stdin is not None and server.stdout is not None
    print(name, file=server.stdin, flush=True)
    found: dict[str, Any] | None = json.loads(server.stdout.readline() or "null")
    return found


def lines_of(name: str) -> int:
    """Lines of the plugin that has the method's loss."""
    plugin = METHODS[name]["loss"][-1]["use"].partition(".")[0]
    folder = Path(__file__).resolve().parents[1] / "plugins" / f"twinview_{plugin}"
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*.py"))


def table() -> str:
    """The rows that were measured."""
    rows = json.loads(RESULT.read_text())
    lines = ["| method | lines of the plugin | seconds | MB | lightly: seconds | MB |", "|---|---|---|---|---|---|"]
    for name in (name for name in METHODS if name in rows):
        row, other = rows[name], rows[name].get("lightly", {})
        cells = (name, row["lines"], row["ours"]["seconds"], row["ours"]["memory_mb"], other.get("seconds", ""), other.get("memory_mb", ""))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, f"Commit {', '.join(sorted({row['commit'] for row in rows.values()}))}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("methods", metavar="METHOD", nargs="*", default=[], help=f"of {', '.join(METHODS)} (default: all)")
    parser.add_argument("--lightly", metavar="PYTHON", help="an interpreter whose environment has lightly")
    parser.add_argument("--print", action="store_true", help="the rows that are there, and nothing else")
    parser.add_argument("--steps", type=int, default=5, help="of a round (default: 5)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", metavar="WHO", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.print:
        print(table())
        return
    if args.serve:
        serve(args.serve, args.steps)
        return
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        parser.error(f"no method {unknown[0]!r}; there is: {', '.join(METHODS)}")
    from machine import commit, processor

    rows: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    failed: list[str] = []
    made_by = {"commit": commit(), "seed": 0, "processor": processor()}
    servers = {who: begun(who, python, args.steps) for who, python in (("ours", sys.executable), ("lightly", args.lightly)) if python}
    for name in args.methods or METHODS:
        found: dict[str, list[dict[str, Any]]] = {who: [] for who in servers if who == "ours" or name in LIGHTLY}
        for _ in range(args.rounds):
            for who, runs in found.items():
                runs += [run for run in [asked(servers[who], name)] if run]
        if not all(found.values()):
            print(f"{name}: failed, as said above", file=sys.stderr)
            failed.append(name)
            continue
        row: dict[str, Any] = {"lines": lines_of(name), **made_by}
        for who, runs in found.items():
            least = {key: min(run[key] for run in runs) for key in ("seconds", "memory_mb")}
            row[who] = {"seconds": round(least["seconds"], 3), "memory_mb": least["memory_mb"], "torch": runs[0]["torch"]}
        rows[name] = row
        print(name, json.dumps(row), flush=True)
        RESULT.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
