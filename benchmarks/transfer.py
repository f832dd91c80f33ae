"""What encoders are worth when they are trained further with labels: recipes of fine-tuning, segmentation and detection, from several weights.

    python benchmarks/transfer.py detect/scenes_r18 --weights "" RUN ... [--seeds 0 1] [key=value ...]

A JSON line a run in benchmarks/results/transfer.jsonl: recipe, weights ("": random start), seed, scores, steps, seconds, commit.  A run that is
there already, of this code, is not made again.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from proof.rows import Rows, table_hash

RESULTS = Path(__file__).parent / "results" / "transfer.jsonl"


def main() -> None:
    """Train from each of the weights with each seed."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("recipe")
    ask.add_argument("overrides", nargs="*")
    ask.add_argument("--weights", nargs="+", default=[""])
    ask.add_argument("--seeds", type=int, nargs="+", default=[0])
    ask.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    args = ask.parse_args()
    rows = Rows(RESULTS, ("recipe", "weights", "seed"))
    made = table_hash({"overrides": args.overrides})
    for seed in args.seeds:
        for weights in args.weights:
            name = Path(weights).name
            if not rows.find(recipe=args.recipe, weights=name, seed=seed, recipe_hash=made):
                rows.add({**one(args, weights, seed, args.runs / f"{args.recipe.replace('/', '-')}-{name}-{seed}-{made}"), "recipe_hash": made})


def one(args: argparse.Namespace, weights: str, seed: int, run: Path) -> dict[str, Any]:
    """Train once, in a process of its own."""
    began = time.monotonic()
    words = ["train", args.recipe, *args.overrides, f"run.seed={seed}", *([f"encoder.weights={weights}"] if weights else []), "--run", str(run)]
    subprocess.run([sys.executable, "-m", "twinview", *words, "--resume", "auto"], check=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {k.removeprefix("score/"): round(v, 3) for row in rows for k, v in row.items() if k.startswith("score/")}
    said = {"steps": rows[-1]["step"], "seconds": round(time.monotonic() - began, 1), "overrides": args.overrides}
    return {"recipe": args.recipe, "weights": Path(weights).name, "seed": seed, **scores, **said}


if __name__ == "__main__":
    main()
