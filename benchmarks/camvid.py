"""What MultiSiam, plain BYOL and a random start are worth on CamVid: mIoU of a linear probe on frozen features, several seeds each.

    twinview shards pack images CAMVID/images/train shards/camvid-train --labels CAMVID/labels/train
    twinview shards pack images CAMVID/images/val shards/camvid-val --labels CAMVID/labels/val
    python benchmarks/camvid.py --shards shards --runs runs/camvid

Trains anew: only rows that this very code made (same files of core/ and plugins/, same overrides) are kept, and a run that was stopped goes on.
A JSON line per run in benchmarks/results/camvid.jsonl, with its commit; `--print` shows the rows there, whatever made them, and trains nothing.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from proof.data import require_shards
from proof.rows import Row, Rows, table_hash

RECIPES = ("multisiam/camvid", "byol/camvid")
RESULTS = Path(__file__).parent / "results" / "camvid.jsonl"


def main() -> None:
    """Train every recipe with every seed, then print the table."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--shards", type=Path, default=Path("shards"))
    ask.add_argument("--runs", type=Path, default=Path("runs/camvid"))
    ask.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ask.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, each with its share of the cores")
    ask.add_argument("--print", action="store_true", help="the table of the rows that are there, by commit; trains nothing")
    ask.add_argument("overrides", nargs="*", help="for every run; results then go beside the runs")
    args = ask.parse_args()
    rows = Rows(args.runs / "results.jsonl" if args.overrides else RESULTS, ("recipe", "seed"))
    if args.print:
        for made, found in rows.by_commit().items():
            print("\n".join([f"commit {made}", *table(found)]))
        return
    require_shards(args.shards, "camvid-train", "camvid-val")
    version = table_hash({"overrides": args.overrides})
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = []
        for seed in args.seeds:
            for recipe in (r for r in RECIPES if not rows.find(recipe=r, seed=seed, recipe_hash=version)):
                run = args.runs / f"{recipe.replace('/', '-')}-{seed}-{rows.code}-{version}"
                runs.append(pool.submit(one, recipe, seed, args.shards.resolve(), run, threads, args.overrides))
        for done in as_completed(runs):
            rows.add({**done.result(), "recipe_hash": version})
    print("\n".join(table([row for row in rows.of_this_code() if row.get("recipe_hash") == version])))


def one(recipe: str, seed: int, shards: Path, run: Path, threads: int, overrides: list[str]) -> dict[str, Any]:
    """Train one recipe with one seed in a process of its own, with so many threads and data workers."""
    train, val = shards / "camvid-train", shards / "camvid-val"
    keys = [f"data.shards={train}", f"evaluate.0.val={val}", f"run.seed={seed}", f"data.workers={threads}", *overrides]
    started = time.monotonic()
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".log").open("a") as log:
        command = [sys.executable, "-m", "twinview", "train", recipe, *keys, "--run", str(run), "--resume", "auto"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=log, stderr=log)
    seconds = time.monotonic() - started
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    scores = {k.removeprefix("score/segment/"): v for k, v in last.items() if k.startswith("score/")}
    said = {k: last[k] for k in ("step", "loss", "spread/online", "erank/online") if k in last}
    return {"recipe": recipe, "seed": seed, **scores, **said, "seconds": round(seconds, 1)}


def table(rows: list[Row]) -> list[str]:
    """Mean and standard deviation over seeds, and how far each is above the random start in pooled deviations."""
    scores = {recipe: [row["miou"] for row in rows if row["recipe"] == recipe] for recipe in RECIPES}
    scores["random start"] = [row["random/miou"] for row in rows if row["recipe"] == RECIPES[0]]
    random = scores["random start"]
    lines = [f"{'':<18} {'mIoU':>6} {'+-':>5} {'above random':>13} {'pooled deviations':>18}"]
    for name, found in scores.items():
        mean, spread = statistics.mean(found), statistics.stdev(found) if len(found) > 1 else float("nan")
        gain = mean - statistics.mean(random)
        pooled = ((spread**2 + (statistics.stdev(random) if len(random) > 1 else float("nan")) ** 2) / 2) ** 0.5
        beside = f"{gain:>13.2f} {gain / pooled if pooled else float('nan'):>18.1f}" if name != "random start" else ""
        lines.append(f"{name:<18} {mean:>6.2f} {spread:>5.2f} {beside}")
    return lines


if __name__ == "__main__":
    main()
