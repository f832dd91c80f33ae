"""Which signal without labels tells a better checkpoint from a worse one: rank correlation with the linear probe over the checkpoints of runs.

    python benchmarks/signals.py RUN [RUN ...] --train shards/cifar10-train --val shards/cifar10-test --size 32
    python benchmarks/signals.py RUN [RUN ...] --train shards/facade-train --val shards/facade-val --size 192 256 --maps

RUN: folders of runs that kept many checkpoints (run.checkpoint_every=100 run.keep=100).  Writes benchmarks/results/signals.json: of each run and
signal Spearman's correlation with the probe (linear/top1 by the solver ridge; with --maps segment/miou) over its checkpoints and its random
start, which is step 0; and over the checkpoints of all runs of one probe together.  Signals see images of `train`, without labels.
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
PROBES = {"linear/top1", "knn/top1", "segment/miou"}


def main() -> None:
    """Score every checkpoint, then correlate."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("runs", type=Path, nargs="+")
    ask.add_argument("--train", required=True)
    ask.add_argument("--val", required=True)
    ask.add_argument("--size", type=int, nargs="+", required=True, help="pixels: side, or height and width")
    ask.add_argument("--maps", action="store_true", help="the probe is of label maps: segment/miou")
    ask.add_argument("--ignore", type=int, nargs="+", default=[8, 255], help="labels of maps that are no class (default: LabelMeFacade's)")
    ask.add_argument("--images", type=int, default=2000)
    ask.add_argument("--scores", type=Path, default=Path("runs/signals"), help="where scores.json of each run is kept")
    args = ask.parse_args()
    points: list[dict[str, Any]] = json.loads(OUT.read_text())["points"] if OUT.is_file() else []
    for run in args.runs:
        for step in apart(steps_in(run / "checkpoints")):
            if not any((p["run"], p["step"]) == (run.name, step) for p in points):  # a stopped benchmark goes on; remove the file to start over
                points += scored(run, step, args)
                write(points, args.images)
    write(points, args.images)


def apart(steps: list[int]) -> list[int]:
    """Rising steps without those that come within a hundredth of the run behind another: the same weights would count twice."""
    kept: list[int] = []
    for step in steps:
        if not kept or step - kept[-1] > steps[-1] // 100:
            kept.append(step)
    return kept


def write(points: list[dict[str, Any]], images: int) -> None:
    """All points, and the correlations of what there is: of each run with enough checkpoints, and of all runs with one probe."""
    found = {name: correlations(some) for name in sorted({p["run"] for p in points}) if len(some := [p for p in points if p["run"] == name]) > 4}
    for probe in ("linear/top1", "segment/miou"):
        some = [p for p in points if probe in p]
        if len({p["run"] for p in some}) > 1:
            found[f"all runs by {probe}"] = correlations(some)
    table = {"images": images, "machine": processor(), "commit": commit(), "points": points, "spearman_with_the_probe": found}
    OUT.write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(found, indent=1), flush=True)


def scored(run: Path, step: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Probes and signals of a checkpoint; with the first one those of the random start, as step 0."""
    size = [*args.size, *args.size][:2]
    target = attrs.evolve(find_target(run, ["data.workers=0"], step=step), scores=args.scores / run.name / "scores.json")
    sets = {"train": args.train, "val": args.val}
    asked: dict[str, dict[str, Any]] = {
        **({"segment": {**sets, "ignore": args.ignore, "images": 200}} if args.maps else {"linear": {**sets, "solver": "ridge"}, "knn": sets}),
        **{name: {"val": args.train, "images": args.images} for name in SIGNALS},
    }
    asked["lidar"] |= {"images": min(args.images, 200)}
    asked["uniformity"] |= {"images": min(args.images, 500)}
    asked["occupancy"] |= {"clusters": 50}
    first = step == min(steps_in(run / "checkpoints"))
    found: list[dict[str, Any]] = [{"run": run.name, "step": n, "seed": target.recipe().run.seed} for n in ([0, step] if first else [step])]
    for name, options in asked.items():
        recipe = evaluation_recipe(target.recipe(), name, None, {**options, "size": size, "baselines": ["random"] if first else []})
        scores = evaluate(api.checked(recipe), target).scores
        for point in found:
            named = {score: score.replace("/", "/random/", 1) if point["step"] == 0 else score for score in {*SIGNALS.values(), *PROBES}}
            point |= {score: round(scores[said], 4) for score, said in named.items() if said in scores}
    print(found, flush=True)
    return found


def correlations(points: list[dict[str, Any]]) -> dict[str, float]:
    """Spearman's with the probe; of alpha-ReQ the distance from 1, which is to be small."""
    truth = [p.get("linear/top1", p.get("segment/miou")) for p in points]
    found = {}
    for name, score in {**SIGNALS, "knn": "knn/top1"}.items():
        if any(score not in p for p in points):
            continue
        values = [-abs(p[score] - 1) if name == "alphareq" else -p[score] if name == "uniformity" else p[score] for p in points]
        rank = float(spearmanr(values, truth).statistic) if len(points) > 2 else math.nan
        found[name] = round(rank, 3)
    return found


if __name__ == "__main__":
    main()
