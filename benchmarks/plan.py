"""`twinview plan` beside what training takes: a few steps of real recipes on 1 and 2 ranks under stages 0 to 3, each in a process of its own.

    python benchmarks/plan.py                      # on a GPU if there is one: torch.cuda.max_memory_allocated
    python benchmarks/plan.py --cases r18 --ranks 1

On a CPU the peak of all tensors' bytes is read from torch's profiler, from before the model is built to the end of the third step.  Beside it
stands the growth of the process (its peak resident memory over what the imports took, in another process without the profiler), which also has
the kernels' workspace and what the allocator keeps.  BatchNorm is not synchronized: what stands in for torch's on a CPU keeps one map more.
Writes benchmarks/results/plan.json.
"""
from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from twinview.assembly import assemble
from twinview.data.loading.loader import training_batches
from twinview.data.prepare.pack import pack_images
from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import quiet_deepspeed
from twinview.engine.setup import build, wrap
from twinview.engine.step import take_step
from twinview.planning.memory import measure
from twinview.planning.plan import Machine, choose
from twinview.planning.plan import plain as planned
from twinview.recipe import Recipe, from_table
from twinview.values import Progress

RESULT = Path(__file__).parent / "results" / "plan.json"
STEPS, BUCKET = 3, 5_000_000
BYOL: dict[str, Any] = {"views": {"use": "byol.crops", "size": 96}, "loss": [{"use": "byol.image", "hidden": 1024, "channels": 128}]}
SIAMESEIM: dict[str, Any] = {
    "views": {"use": "siameseim.crops", "size": 112},
    "masks": {"use": "siameseim.blocks", "count": 29},
    "align": {"use": "siameseim.relative", "depth": 2, "attention_heads": 6},
    "optimizer": {"use": "adamw", "lr": 1e-4, "weight_decay": 0.05},
}
CASES: dict[str, dict[str, Any]] = {
    "r18": {**BYOL, "encoder": {"use": "torchvision.resnet", "name": "resnet18"}, "batch": 16},
    "r50": {**BYOL, "encoder": {"use": "torchvision.resnet", "name": "resnet50"}, "batch": 8},
    "multisiam": {
        "views": {"use": "multisiam.iou_crops", "size": 96}, "align": {"use": "multisiam.roi"},
        "encoder": {"use": "torchvision.resnet", "name": "resnet18"},
        "loss": [{"use": "byol.image", "hidden": 1024, "channels": 128}, {"use": "multisiam.clusters"}], "batch": 16,
    },
    "vit_tiny": {
        **SIAMESEIM, "encoder": {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "positions": "sine_row", "final_norm": False, "width": 192},
        "loss": [{"use": "siameseim.dense", "channels": 192, "attention_heads": 6}], "batch": 16,
    },
    "vit_small": {
        **SIAMESEIM, "encoder": {"use": "timm.encoder", "name": "vit_small_patch16_224", "positions": "sine_row", "final_norm": False},
        "loss": [{"use": "siameseim.dense", "channels": 384, "attention_heads": 6}], "batch": 8,
    },
}


def recipe_of(case: str, shards: Path, stage: int) -> Recipe:
    table = {"optimizer": {"use": "sgd", "lr": 0.05, "weight_decay": 1e-4}, **CASES[case]}
    zero = {"stage": stage, **({"reduce_bucket_size": BUCKET} if stage else {})}
    run = {"steps": STEPS, "batch_size": table.pop("batch"), "sync_batchnorm": False}
    data = {"shards": str(shards), "workers": 0}
    return from_table({**table, "target": {"momentum": 0.99}, "data": data, "run": run, "deepspeed": {"zero_optimization": zero}})


def train(recipe: Recipe) -> None:
    built = build(recipe)
    batches = list(training_batches(built.recipe, built.dims, built.shards, rank=built.ranks.rank, world=built.ranks.world, steps=1))
    engine = wrap(built, Path())
    for i in range(STEPS):
        take_step(built, engine, iter(batches), Progress(i, STEPS, 0, i / STEPS), watch=False)


def tensors(recipe: Recipe) -> int:
    """Peak bytes of tensors."""
    if torch.cuda.is_available():
        train(recipe)
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        train(recipe)
    events: Any = seen.profiler.kineto_results.events()
    live = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        live += size
        peak = max(peak, live)
    return peak


def in_ranks(ranks: int, work: Callable[[Recipe], int], recipe: Recipe) -> int:
    """Rank 0's answer, from fresh processes."""
    return int(forked(lambda: launch(ranks, lambda: work(recipe))))


def resident(recipe: Recipe) -> int:
    """Growth of this process, bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    train(recipe)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def forked(work: Callable[[], Any]) -> Any:
    """The result of `work` in a process of its own, which has all imports."""
    context = multiprocessing.get_context("fork")
    ear, mouth = context.Pipe(duplex=False)

    def run(mouth: Connection) -> None:
        mouth.send(work())

    child = context.Process(target=run, args=(mouth,))
    child.start()
    mouth.close()
    try:
        return ear.recv()
    finally:
        child.join()


def predicted(case: str, shards: Path, ranks: int) -> dict[int, int]:
    recipe = recipe_of(case, shards, 1)  # with the buckets that are measured
    here = torch.cuda.is_available()
    found = measure(planned(recipe, here), assemble(planned(recipe, here)), gpu=here)
    machine = Machine(gpus=ranks, memory=2**40, gpu=here)
    return {s: choose(recipe, found, machine, s, recipe.run.batch_size // ranks).total for s in (0, 1, 2, 3)}


def compare(case: str, shards: Path, ranks: int) -> list[dict[str, Any]]:
    rows = []
    expected = forked(lambda: predicted(case, shards, ranks))
    for stage in (0, 1, 2, 3):
        recipe = recipe_of(case, shards, stage)
        found = in_ranks(ranks, tensors, recipe)
        row = {"case": case, "ranks": ranks, "stage": stage, "predicted": expected[stage], "measured": found}
        row["error"] = round(expected[stage] / found - 1, 3)
        if not torch.cuda.is_available():
            row["resident_growth"] = in_ranks(ranks, resident, recipe)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    if not gpu:
        quiet_deepspeed("cpu")
        for module in ("deepspeed.runtime.zero.muon.muon_optimizer", "torch._dynamo", "timm", "torchvision"):
            importlib.import_module(module)  # paid for once, and not counted
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        (Path(folder) / "images").mkdir()
        for i in range(32):
            Image.fromarray(rng.integers(0, 256, (160, 200, 3), dtype=np.uint8)).save(f"{folder}/images/{i:02}.jpg")
        shards = pack_images(Path(folder) / "images", Path(folder) / "shards").out
        rows = [row for case in tqdm(args.cases) for ranks in args.ranks for row in compare(case, Path(shards), ranks)]
    write(rows, f"python benchmarks/plan.py --cases {' '.join(args.cases)} --ranks {' '.join(map(str, args.ranks))}")


def write(rows: list[dict[str, Any]], command: str) -> None:
    gpu = torch.cuda.is_available()
    errors = {stage: [abs(row["error"]) for row in rows if row["stage"] == stage] for stage in (0, 1, 2, 3)}
    result = {
        "what": f"predicted and measured peak bytes of a rank, {STEPS} steps, reduce_bucket_size {BUCKET}",
        "command": command,
        "machine": {"device": torch.cuda.get_device_name() if gpu else platform.machine(), "threads": torch.get_num_threads()},
        "versions": {p: version(p) for p in ("torch", "deepspeed", "twinview")},
        "largest_error_by_stage": {stage: max(found) for stage, found in errors.items()},
        "rows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
