"""kill -9 at random moments, saving included: what is left loads, and goes on to the losses of a run that was never stopped, bit for bit.

    python benchmarks/kill.py                               # 100 kills: 1 and 2 ranks, ZeRO 0 to 3
    python benchmarks/kill.py --kills 20 --seed 1

A small network and a checkpoint every 2 steps, so that kills fall into saves too (they are counted).  Each configuration trains once whole; then
it is started again and again, all of its processes are killed at a random moment, and what `checkpoints/` holds is opened; when a run has
reached its end, its losses, and the weights of its last checkpoint, are compared.  Writes benchmarks/results/kill.json.
"""
from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from machine import commit
from twinview.assembly import assemble
from twinview.data.prepare.pack import pack_images
from twinview.engine.checkpoint import find_checkpoint, steps_in
from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import quiet_deepspeed
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.errors import CheckpointError
from twinview.recipe import Recipe, from_table

RESULT = Path(__file__).parent / "results" / "kill.json"
CONFIGURATIONS = [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]  # ranks, ZeRO stage
STEPS, EVERY = 30, 2


def recipe(shards: Path, stage: int) -> Recipe:
    """BYOL of timm's smallest ResNet at 64 pixels: BatchNorm of each rank by itself, so that ranks differ in what has to come back."""
    return from_table({
        "views": {"use": "byol.crops", "size": 64},
        "encoder": {"use": "timm.encoder", "name": "test_resnet"},
        "loss": [{"use": "byol.image", "hidden": 64, "channels": 32}],
        "data": {"shards": str(shards), "workers": 1},
        "optimizer": {"use": "adamw", "lr": 1e-3},
        "schedule": {"warmup_steps": 3},
        "run": {"steps": STEPS, "batch_size": 8, "log_every": 1, "checkpoint_every": EVERY, "device": "cpu", "sync_batchnorm": False},
        "deepspeed": {"zero_optimization": {"stage": stage}},
    })


def begin(made: Recipe, folder: Path, ranks: int) -> int:
    """A process group that trains, or goes on, silently."""
    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = 1
        try:
            launch(ranks, lambda: train(made, folder, resume="auto"))
            code = 0
        finally:
            os._exit(code)
    return child


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(folder / "metrics.jsonl")]


def same_end(one: Path, other: Path) -> bool:
    """Whether two runs have the same losses and the same weights at their ends, bit for bit."""
    import torch

    weights, others = (find_checkpoint(folder / "checkpoints").load("model.pt") for folder in (one, other))
    return losses(one) == losses(other) and all(torch.equal(weights[k], others[k]) for k in weights)


class Killer:
    """Runs of one configuration, killed again and again."""

    def __init__(self, made: Recipe, root: Path, ranks: int, draw: random.Random) -> None:
        self.made, self.root, self.ranks, self.draw = made, root, ranks, draw
        began = time.monotonic()
        assert os.waitpid(begin(made, root / "whole", ranks), 0)[1] == 0
        self.seconds = time.monotonic() - began
        self.found: dict[str, Any] = dict.fromkeys(("kills", "while_saving", "before_a_checkpoint", "unreadable", "ends", "ends_that_differ"), 0)

    def kill(self) -> None:
        """Start or go on, and kill at a moment drawn from the time that a whole run takes; at an end, compare and start afresh."""
        folder, found = self.root / "killed", self.found
        while True:
            child = begin(self.made, folder, self.ranks)
            until = time.monotonic() + self.draw.uniform(0.1, 0.9) * self.seconds
            while time.monotonic() < until:
                time.sleep(0.001)
                if os.waitpid(child, os.WNOHANG)[0]:
                    self.end()
                    break
            else:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
        found["kills"] += 1
        checkpoints = folder / "checkpoints"
        found["while_saving"] += bool(list(checkpoints.glob(".*.tmp")))
        found["before_a_checkpoint"] += not steps_in(checkpoints)
        try:
            if steps_in(checkpoints):
                find_checkpoint(checkpoints)
        except CheckpointError:
            found["unreadable"] += 1

    def end(self) -> None:
        """The run has reached its end, or failed."""
        self.found["ends"] += 1
        self.found["ends_that_differ"] += not same_end(self.root / "whole", self.root / "killed")
        shutil.rmtree(self.root / "killed")

    def finish(self) -> dict[str, Any]:
        """Let the last run reach its end too."""
        assert os.waitpid(begin(self.made, self.root / "killed", self.ranks), 0)[1] == 0
        self.end()
        return self.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100, help="over all configurations")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    quiet_deepspeed("cpu")
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # paid for once; every rank would ask for it under stages 1-3
    draw, rng, table = random.Random(args.seed), np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "images").mkdir()
        for i in range(32):
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(root / f"images/{i:02d}.jpg")
        pack_images(root / "images", root / "shards")
        for i, (ranks, stage) in enumerate(CONFIGURATIONS):
            made = recipe(root / "shards", stage)
            assemble(made)  # imports the methods
            killer = Killer(made, root / f"ranks-{ranks}-stage-{stage}", ranks, draw)
            kills = args.kills // len(CONFIGURATIONS) + (i < args.kills % len(CONFIGURATIONS))
            for _ in tqdm(range(kills), desc=f"{ranks} ranks, stage {stage}", unit=" kills", disable=not sys.stderr.isatty()):
                killer.kill()
            table.append({"ranks": ranks, "stage": stage, **killer.finish()})
            print(json.dumps(table[-1]), file=sys.stderr, flush=True)
    kills = sum(row["kills"] for row in table)
    faults = sum(row["unreadable"] + row["ends_that_differ"] for row in table)
    result = {
        "what": f"kill -9 at random moments of runs of {STEPS} steps with a checkpoint every {EVERY}; resumed with --resume auto, fp32, CPU",
        "command": f"python benchmarks/kill.py --kills {args.kills} --seed {args.seed}",
        "commit": commit(),
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "versions": {p: version(p) for p in ("torch", "deepspeed", "twinview")},
        "kills": kills,
        "faults": faults,
        "configurations": table,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
