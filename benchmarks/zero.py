"""Stages x ranks x recipes: how far training with ZeRO and several ranks is from one process, after 20 steps of the same global batches.

    python benchmarks/zero.py                                                 # the recipes of CASES, 1, 2 and 4 ranks, stages 0 to 3
    python benchmarks/zero.py --recipe byol/camvid --set data.shards=DIR      # any recipe

BatchNorm is synchronized, the precision fp32.  For each run the table has the largest difference of a step's loss from that of one process at
stage 0, relative and absolute (a loss of cosines is near 0 in an untrained network, where relative differences look large), and of the weights
of both branches at the end (as a part of the largest weight of their tensor, or of 1e-3 where that is smaller: some tensors, such as the running
means behind two BatchNorms, hold rounding alone).  Reported beside it: the difference from a plain loop of torch's at the same number of ranks:
0, or what another order of sums makes (more than two ranks; stage 3 where a network sees several views).  Writes benchmarks/results/zero.json.
"""
from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from children import in_child
from twinview.assembly import assemble
from twinview.engine.distributed.process import quiet_deepspeed
from twinview.recipe import Recipe, read

RESULT = Path(__file__).parent / "results" / "zero.json"
TINY = 1e-3
SMALL: dict[str, Any] = {
    "encoder": {"use": "timm.encoder", "name": "test_resnet", "cells": "c4"},  # shallow: depth and BatchNorm multiply a last bit at every step
    "target": {"momentum": 0.9},
    "optimizer": {"use": "sgd", "lr": 2e-4, "weight_decay": 1e-4},
    "schedule": {"warmup_steps": 4},
}
CASES: dict[str, dict[str, Any]] = {
    "byol": {**SMALL, "views": {"use": "byol.crops", "size": 64}, "loss": [{"use": "byol.image", "hidden": 256, "channels": 64}]},
    "multisiam": {
        **SMALL,
        "views": {"use": "multisiam.iou_crops", "size": 64},
        "align": {"use": "multisiam.roi"},
        # as many clusters as cells: which cluster a cell falls to is discrete otherwise, and a last bit may turn it
        "loss": [{"use": "byol.image", "hidden": 256, "channels": 64}, {"use": "multisiam.clusters", "clusters": 16, "hidden": 256, "channels": 64}],
    },
    "densesiam": {
        **SMALL,
        "encoder": {**SMALL["encoder"], "cells": "c5"},  # no loss reaches what lies behind the cells
        "views": {"use": "densesiam.crop_and_whole", "size": [96, 96], "scale": [0.5, 1.0]},
        "align": {"use": "densesiam.grid_sample"},
        # without densesiam.segment: its pseudo labels are discrete
        "loss": [
            {"use": "densesiam.pixel", "channels": 64, "hidden": 64, "predictor_hidden": 64},
            {"use": "densesiam.region", "regions": 8, "hidden": 64, "weight": 0.1},
        ],
        "target": {"momentum": 0.0},
        "optimizer": {**SMALL["optimizer"], "lr": 1e-4},  # its sums over regions multiply a last bit faster
    },
    "siameseim": {
        **SMALL,
        "views": {"use": "siameseim.crops", "size": 64},
        "masks": {"use": "siameseim.blocks", "count": 10},
        "encoder": {
            **{"use": "timm.encoder", "name": "vit_tiny_patch16_224", "width": 96, "depth": 3, "heads": 3},
            **{"positions": "sine_row", "final_norm": False, "init": "mae"},
        },
        "align": {"use": "siameseim.relative", "depth": 2, "attention_heads": 3},
        "loss": [{"use": "siameseim.dense", "channels": 96, "attention_heads": 3, "negative_weight": 0.12}],
        "target": {"momentum": 0.9, "update": "before_forward"},
        "optimizer": {"use": "adamw", "lr": 2e-4, "betas": [0.9, 0.95], "weight_decay": 0.05},
    },
}


def resolved(case: str, overrides: Sequence[str], shards: Path, steps: int, batch: int, stage: int) -> Recipe:
    """A case of ours, or a recipe by name, with the run that is measured here."""
    run = {"steps": steps, "batch_size": batch, "log_every": 1, "device": "cpu", "precision": "fp32"}
    plain: dict[str, Any] = CASES.get(case) or {k: v for k, v in read(case, overrides).table().items() if k not in ("evaluate", "run", "schedule")}
    data = {**plain.get("data", {}), "workers": 0} if case not in CASES else {"shards": str(shards), "workers": 0}
    return read({**plain, "data": data, "run": run, "deepspeed": {"zero_optimization": {"stage": stage}}}, overrides if case in CASES else ())


def trained(recipe: Recipe) -> tuple[list[float], dict[str, np.ndarray[Any, Any]]]:
    """Losses over all ranks and the weights at the end; every rank calls it, rank 0 has the weights."""
    from twinview.data.loading.loader import training_batches
    from twinview.engine.distributed.process import averaged
    from twinview.engine.setup import build, wrap
    from twinview.engine.step import take_step
    from twinview.engine.zero import whole_state
    from twinview.values import Progress

    built = build(recipe)
    engine, losses = wrap(built, Path()), []
    batches = training_batches(built.recipe, built.dims, built.shards, rank=built.ranks.rank, world=built.ranks.world, steps=built.steps)
    for step in range(built.steps):
        progress = Progress(step, built.steps, step // built.epoch, step / built.steps)
        losses.append(averaged({"loss": take_step(built, engine, batches, progress, watch=False).numbers()["loss"]})["loss"])
    return losses, _arrays(whole_state(built.model))


def by_hand(recipe: Recipe) -> tuple[list[float], dict[str, np.ndarray[Any, Any]]]:
    """The same by torch alone: backward, mean of the gradients over ranks, step, average of the target."""
    import torch
    import torch.distributed as dist

    from twinview.data.loading.loader import training_batches
    from twinview.engine.distributed.process import averaged
    from twinview.engine.optimizer import set_rates
    from twinview.engine.schedule import lr_factor, momentum_at
    from twinview.engine.setup import build
    from twinview.values import Progress

    built = build(recipe)
    model, losses = built.model.train(), []

    @torch.no_grad()
    def follow(momentum: float) -> None:
        online = dict(model.online.named_parameters())
        for name, p in model.target.named_parameters() if model.target is not None else ():
            p.lerp_(online[name], 1 - momentum)

    batches = training_batches(built.recipe, built.dims, built.shards, rank=built.ranks.rank, world=built.ranks.world, steps=built.steps)
    for step, batch in enumerate(batches):
        progress = Progress(step, built.steps, step // built.epoch, step / built.steps)
        set_rates(built.optimizer, recipe.optimizer.peak(recipe.run.batch_size), lr_factor(recipe.schedule, progress.share, built.warmup))
        if recipe.target.update == "before_forward":
            follow(momentum_at(recipe.target, progress.share))
        loss = model(batch, progress).loss
        loss.backward()
        losses.append(averaged({"loss": loss.item()})["loss"])
        for p in built.trainable.values():
            if p.grad is not None and built.ranks.world > 1:
                dist.all_reduce(p.grad)
                p.grad.div_(built.ranks.world)
        built.optimizer.step()
        built.optimizer.zero_grad()
        if recipe.target.update == "after_step":
            follow(momentum_at(recipe.target, progress.share))
    return losses, _arrays(model.state_dict())


def _arrays(state: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {k: v.numpy().copy() for k, v in state.items() if v.is_floating_point()}


def apart(one: tuple[Any, Any], other: tuple[Any, Any]) -> dict[str, float]:
    """The largest relative differences of the losses and of the weights."""
    (losses, weights), (expected, values) = one, other
    return {
        "loss_absolute": max(abs(a - b) for a, b in zip(losses, expected, strict=True)),
        "loss": max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)),
        "weights": max(float(abs(weights[k] - values[k]).max() / max(abs(values[k]).max(), TINY)) for k in values),
    }


def compare(case: str, args: argparse.Namespace, shards: Path) -> list[dict[str, Any]]:
    """The rows of one case."""
    recipes = {stage: resolved(case, args.set, shards, args.steps, args.batch_size, stage) for stage in args.stages}
    assemble(recipes[args.stages[0]])  # imports the methods
    base = resolved(case, args.set, shards, args.steps, args.batch_size, 0)
    alone = in_child(1, lambda: trained(base))
    rows = []
    for ranks in tqdm(args.ranks, desc=case, unit=" rank counts", disable=not sys.stderr.isatty()):
        found = in_child(ranks, lambda: [by_hand(base), *(trained(recipe) for recipe in recipes.values())])
        for stage, here in zip(recipes, found[1:], strict=True):
            gaps = {"from_one_process": apart(here, alone), "from_plain_loop": apart(here, found[0])}
            rows.append({"recipe": case, "ranks": ranks, "stage": stage, **gaps})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", action="append", help=f"a recipe by name, again for several (default: {', '.join(CASES)})")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="keys of the recipe")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    quiet_deepspeed("cpu")
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # paid for once; every rank would ask for it under stages 1-3
    from twinview.data.prepare.pack import pack_images

    with tempfile.TemporaryDirectory() as name:
        root, rng = Path(name), np.random.default_rng(0)
        (root / "images").mkdir()
        for i in range(2 * args.batch_size):  # of colors of their own: BatchNorm over images alike would multiply every last bit
            small = rng.uniform(0, 1, (1, 1, 3)) * rng.uniform(0, 255, (6, 8, 1 + 2 * (i % 2)))
            Image.fromarray(small.astype(np.uint8)).resize((128, 96), Image.Resampling.BICUBIC).save(root / f"images/{i:03d}.jpg")
        pack_images(root / "images", root / "shards")
        rows = [row for case in args.recipe or CASES for row in compare(case, args, root / "shards")]
    result = {
        "what": f"largest relative differences after {args.steps} steps of global batches of {args.batch_size}; fp32, synchronized BatchNorm, gloo",
        "command": f"python {' '.join(['benchmarks/zero.py', *sys.argv[1:]])}",
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "versions": {p: version(p) for p in ("torch", "deepspeed", "twinview")},
        "largest": {k: max(row["from_one_process"][k] for row in rows) for k in ("loss", "loss_absolute", "weights")},
        "rows": rows,
    }
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
