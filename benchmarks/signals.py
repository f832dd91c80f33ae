"""Which signal without labels tells a better checkpoint from a worse one: rank correlation with the linear probe over the checkpoints of runs.

    python benchmarks/signals.py RUN [RUN ...] --train shards/cifar10-train --val shards/cifar10-test --size 32

RUN: folders of runs that kept many checkpoints (run.checkpoint_every=100 run.keep=100).  Writes benchmarks/results/signals.json: of each run and
signal Spearman's correlation with linear/top1 (solver ridge) over its checkpoints, and over the checkpoints of all runs together.
"""
from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import attrs
from scipy.stats import spearmanr

from machine import processor
from proof.rows import commit
from twinview import api
from twinview.analysis.evaluate import evaluate, evaluation_recipe
from twinview.analysis.targets import find_target
from twinview.engine.checkpoint import steps_in

OUT = Path(__file__).parent / "results" / "signals.json"
SIGNALS = {
    **{"rankme": "rankme/value", "lidar": "lidar/value", "alphareq": "alphareq/value"},
    **{"uniformity": "sphere/uniformity", "occupancy": "occupancy/entropy"},
}
PROBES = {"linear": "linear/top1", "knn": "knn/top1"}


def main() -> None:
    """Score every checkpoint, then correlate."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("runs", type=Path, nargs="+")
    ask.add_argument("--train", required=True)
    ask.add_argument("--val", required=True)
    ask.add_argument("--size", type=int, required=True)
    ask.add_argument("--images", type=int, default=2000)
    ask.add_argument("--scores", type=Path, default=Path("runs/signals"), help="where scores.json of each run is kept")
    args = ask.parse_args()
    points: list[dict[str, Any]] = json.loads(OUT.read_text())["points"] if OUT.is_file() else []
    for run in args.runs:
        for step in steps_in(run / "checkpoints"):
            if not any((p["run"], p["step"]) == (run.name, step) for p in points):  # a stopped benchmark goes on; remove the file to start over
                points.append(scored(run, step, args))
                write(points, args.images)
    write(points, args.images)


def write(points: list[dict[str, Any]], images: int) -> None:
    """All points, and the correlations of what there is: of each run with enough checkpoints, of each step over runs, and of all."""
    by_run = {name: correlations(some) for name in sorted({p["run"] for p in points}) if len(some := [p for p in points if p["run"] == name]) > 4}
    found = {
        "images": images, "machine": processor(), "commit": commit(), "points": points,
        "spearman_with_linear": {**by_run, "all": correlations(points)},
    }
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["spearman_with_linear"], indent=1), flush=True)


def scored(run: Path, step: int, args: argparse.Namespace) -> dict[str, Any]:
    """Probes and signals of a checkpoint."""
    size = [args.size, args.size]
    target = attrs.evolve(find_target(run, ["data.workers=0"], step=step), scores=args.scores / run.name / "scores.json")
    asked: dict[str, dict[str, Any]] = {
        "linear": {"train": args.train, "val": args.val, "solver": "ridge"},
        "knn": {"train": args.train, "val": args.val},
        **{name: {"val": args.val, "images": args.images} for name in SIGNALS},
    }
    asked["lidar"] |= {"images": min(args.images, 200)}
    asked["uniformity"] |= {"images": min(args.images, 500)}
    asked["occupancy"] |= {"clusters": 50}
    point: dict[str, Any] = {"run": run.name, "step": step, "seed": target.recipe().run.seed}
    for name, options in asked.items():
        recipe = evaluation_recipe(target.recipe(), name, None, {**options, "size": size, "baselines": []})
        scores = evaluate(api.checked(recipe), target).scores
        point |= {score: round(scores[score], 4) for score in {**SIGNALS, **PROBES}.values() if score in scores}
    print(point, flush=True)
    return point


def correlations(points: list[dict[str, Any]]) -> dict[str, float]:
    """Spearman's with linear/top1; of alpha-ReQ the distance from 1, which is to be small."""
    truth = [p["linear/top1"] for p in points]
    found = {}
    for name, score in {**SIGNALS, "knn": "knn/top1"}.items():
        values = [-abs(p[score] - 1) if name == "alphareq" else -p[score] if name == "uniformity" else p[score] for p in points]
        rank = float(spearmanr(values, truth).statistic) if len(points) > 2 else math.nan
        found[name] = round(rank, 3)
    return found


if __name__ == "__main__":
    main()
