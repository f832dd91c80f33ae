"""What hooks keep, over ZeRO stages, ranks and accumulation: a classifier made anew each epoch, a queue, a center, an average, writes, frozen layers.

    python benchmarks/hook_state.py

Methods and recipes are those of the tests (engine/hook_methods.py, helpers/hook_recipes.py), more of them: two epochs of three steps of eight
photographs each.
For each run the table has the largest difference of any tensor of the checkpoint (weights of both branches, state, buffers) from one process at
stage 0 without accumulation, and the optimizer's steps on what was made anew or frozen.  The network has no BatchNorm, whose statistics are of a
micro-batch.  Writes benchmarks/results/hook_state.json.
"""
from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from machine import commit, processor
from twinview.data.prepare.pack import pack_images

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
DRIVER = TESTS / "helpers" / "hook_recipes.py"
RESULT = Path(__file__).parent / "results" / "hook_state.json"
RANKS = (1, 2)
RESET = {"deep": "classifier", "writes": "predictor"}  # what the optimizer starts afresh on after the first epoch


def photographs(folder: Path) -> str:
    """Twenty-four smooth pictures as shards."""
    images = folder / "images"
    images.mkdir()
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((80, 56), Image.Resampling.BICUBIC).save(images / f"{i:02}.png")
    return str(pack_images(images, folder / "shards").out)


def install(folder: Path) -> Path:
    """The methods as pip would leave them."""
    code = {"toy": runpy.run_path(str(TESTS / "helpers" / "toy.py"))["TOY"], "held": (TESTS / "engine" / "hook_methods.py").read_text()}
    site = folder / "site"
    for name, text in code.items():
        (info := site / f"twinview_{name}-1.0.dist-info").mkdir(parents=True)
        (site / f"twinview_{name}.py").write_text(text)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: twinview_{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[twinview]\n{name} = twinview_{name}\n")
    return site


def train(folder: Path, site: Path, tables: dict[str, Any]) -> None:
    """Every recipe, on each number of ranks."""
    (folder / "recipes.json").write_text(json.dumps(tables))
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    for ranks in tqdm(RANKS, desc="ranks"):
        command = [sys.executable, str(DRIVER), str(folder), str(ranks)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})


def load(folder: Path, run: str, file: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / run / "checkpoints" / "step-000006" / file, weights_only=True)
    return found


def rows(folder: Path, tables: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each run."""
    found = []
    for name in tables:
        kind = name.rpartition("-")[0]
        first = load(folder, f"{next(n for n in tables if n.startswith(kind))}-1", "model.pt")
        for ranks in RANKS:
            state, memory = load(folder, f"{name}-{ranks}", "model.pt"), load(folder, f"{name}-{ranks}", "optimizer.pt")
            assert state.keys() == first.keys()
            gap = max(float((state[k].double() - first[k].double()).abs().max()) for k in first)
            word = RESET.get(kind.partition("-")[0], "")
            steps = sorted({float(values["step"]) for p, values in memory.items() if word and word in p and "step" in values})
            found.append({"run": name, "ranks": ranks, "largest_difference": gap, **({"optimizer_steps_on_" + word: steps} if steps else {})})
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        base = {
            "views": {"use": "toy.views"}, "encoder": {"use": "toy.encoder"}, "loss": [{"use": "toy.pooled"}],
            "optimizer": {"use": "sgd", "lr": 0.1}, "run": {"batch_size": 8, "log_every": 1},
        }
        tables = runpy.run_path(str(DRIVER))["recipes"](base, photographs(folder), accumulations=(1, 2, 4), uses=("sgd", "adamw"))
        train(folder, install(folder), tables)
        found = rows(folder, tables)
    metadata = {"machine": processor(), "torch": version("torch"), "deepspeed": version("deepspeed"), "commit": commit(), "seed": 0}
    RESULT.write_text(json.dumps({**metadata, "rows": found}, indent=1) + "\n")
    for row in found:
        print(row)


if __name__ == "__main__":
    main()
