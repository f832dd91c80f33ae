"""What the options of a step gain: the BYOL step of benchmarks/overhead.py under twinview with each of them, in turn, in one process.

    python benchmarks/step_options.py
    python benchmarks/step_options.py --steps 10 --threads 1 --option channels_last

One engine for each, all in memory at once, one step of each by turns; what a step takes is compared with that of the same turn without options.
The first steps (torch.compile compiles in them) are not timed.  Writes benchmarks/results/step_options.json.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from children import in_child
from machine import processor
from overhead import CASES, WARM_UP, noise, recipe, run
from twinview.assembly import assemble
from twinview.data.loading.loader import training_batches
from twinview.engine.distributed.process import quiet_deepspeed
from twinview.engine.setup import build, wrap
from twinview.engine.step import take_step
from twinview.recipe import Recipe, from_table
from twinview.values import Progress

RESULT = Path(__file__).parent / "results" / "step_options.json"
OPTIONS: dict[str, dict[str, Any]] = {
    "channels_last": {"channels_last": True},
    "views_together": {"views_together": True},
    "compile": {"compile": True},
    "bf16": {"precision": "bf16"},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "bf16, channels_last, views_together, compile": {"precision": "bf16", "channels_last": True, "views_together": True, "compile": True},
}


class Work:
    """Steps of one recipe."""

    def __init__(self, made: Recipe) -> None:
        self.built = build(made)
        self.batches = list(training_batches(self.built.recipe, self.built.dims, self.built.shards, rank=0, world=1, steps=4))
        self.engine = wrap(self.built, Path())

    def __call__(self, i: int) -> float:
        batch = self.batches[i % len(self.batches)]
        return take_step(self.built, self.engine, iter([batch]), Progress(i, 10**6, 0, 0.0), watch=False).numbers()["loss"]


def measure(recipes: dict[str, Recipe], steps: int, threads: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    works = {name: Work(made) for name, made in recipes.items()}
    found = {name: rows[WARM_UP:] for name, rows in run(works, steps).items()}  # type: ignore[arg-type]
    plain = found["none"]
    return [
        {
            "options": name,
            "wall_median_s": median(row[1] for row in rows),
            "wall_of_none": median(row[1] / base[1] for row, base in zip(rows, plain, strict=True)),
            "cpu_of_none": median(row[2] / base[2] for row, base in zip(rows, plain, strict=True)),
            "last_loss": rows[-1][0],
        }
        for name, rows in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", action="append", choices=[name for name, case in CASES.items() if case.ranks == 1])
    parser.add_argument("--option", action="append", choices=OPTIONS, help="again for several (default: all)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    quiet_deepspeed("cpu")
    rows, load = [], round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as name:
        shards = noise(Path(name))
        for title in args.case or ("resnet18", "vit"):
            table = recipe(CASES[title], shards).table()
            recipes = {"none": {}, **{option: OPTIONS[option] for option in args.option or OPTIONS}}
            made = {option: from_table({**table, "run": {**table["run"], **keys}}) for option, keys in recipes.items()}
            assemble(made["none"])  # imports the methods
            rows.append({"case": title, **CASES[title]._asdict(), "steps": in_child(1, partial(measure, made, args.steps, args.threads))})
            print(json.dumps(rows[-1], indent=1))
    result = {
        "what": "BYOL step of two views on the CPU with options of [run], beside the same step without (fp32, one view after the other)",
        "command": f"python {' '.join(['benchmarks/step_options.py', *sys.argv[1:]])}",
        "machine": {"processor": processor(), "threads": args.threads, "load_at_start": load},
        "versions": {p: version(p) for p in ("torch", "deepspeed", "timm", "twinview")},
        "cases": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
