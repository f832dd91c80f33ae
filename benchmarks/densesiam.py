"""DenseSiam's losses one by one on CamVid, and all together on drawn street scenes: mIoU of unsupervised segmentation (Hungarian), several seeds.

    twinview shards pack images CAMVID/images/train shards/camvid-train --labels CAMVID/labels/train
    twinview shards pack images CAMVID/images/val shards/camvid-val --labels CAMVID/labels/val
    python benchmarks/densesiam.py --shards shards --runs runs/densesiam

Every run starts at random, uses no label, and has one thread and at most six minutes of it. Beside them stands k-means (as many clusters as classes)
on c3 to c5 of a random start and of MultiSiam trained for about as long. Trains anew: only rows that this very code made (same files of core/ and
plugins/) are kept, and a run that was stopped goes on. A JSON line per run in benchmarks/results/densesiam.jsonl, with its commit; `--print` shows
the rows there, whatever made them, and trains nothing.
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
from proof.rows import Row, Rows

RESULTS = Path(__file__).parent / "results" / "densesiam.jsonl"
DATA = {"camvid": "densesiam/camvid_r18", "scenes": "densesiam/quickstart"}
MULTISIAM = {"camvid": ("multisiam/camvid", 75), "scenes": ("multisiam/quickstart", 360)}  # recipe, steps that take about as long
PIXEL = '{use="densesiam.pixel", head="clusters", similarity="cross_entropy", predictor_hidden=128%s}'
SEGMENT = '{use="densesiam.segment", head="clusters"}'
REGION = '{use="densesiam.region", head="clusters", weight=0.1, start=0.5}'
VARIANTS = {
    "pixel": [PIXEL % ""],
    "+ region": [PIXEL % "", REGION],
    "+ segment": [PIXEL % "", REGION, SEGMENT],
    "+ auxiliary": [PIXEL % ", auxiliary=128", REGION, SEGMENT],
}
KMEANS = "k-means"  # of the MultiSiam run and of its random start
WANTED = {"camvid": (*VARIANTS, KMEANS), "scenes": ("+ auxiliary", KMEANS)}


def main() -> None:
    """Train every variant on every data set with every seed, then print the table."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--shards", type=Path, default=Path("shards"))
    ask.add_argument("--runs", type=Path, default=Path("runs/densesiam"))
    ask.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ask.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    ask.add_argument("--steps", type=int, default=100, help="of each DenseSiam run")
    ask.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    ask.add_argument("--print", action="store_true", help="the table of the rows that are there, by commit; trains nothing")
    args = ask.parse_args()
    rows = Rows(RESULTS, ("data", "variant", "seed", "steps"))
    if args.print:
        for made, found in rows.by_commit().items():
            print("\n".join([f"commit {made}", *table(found)]))
        return
    if "camvid" in args.data:
        require_shards(args.shards, "camvid-train", "camvid-val")
    wanted = [(data, variant, seed) for seed in args.seeds for data in args.data for variant in WANTED[data]]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = []
        for data, variant, seed in wanted:
            steps = MULTISIAM[data][1] if variant == KMEANS else args.steps
            if not rows.find(data=data, variant=variant, seed=seed, steps=steps):
                folder = args.runs.resolve() / rows.code
                runs.append(pool.submit(one, data, variant, seed, args.shards.resolve(), folder, args.steps))
        for done in as_completed(runs):
            rows.add(done.result())
    print("\n".join(table(rows.of_this_code())))


def one(data: str, variant: str, seed: int, shards: Path, runs: Path, steps: int) -> dict[str, Any]:
    """One run in a process of its own: its scores, or with `k-means` those of MultiSiam's features and of their random start."""
    run = runs / f"{data}-{variant.replace(' ', '').replace('+', '')}-{seed}-{steps}"
    run.parent.mkdir(parents=True, exist_ok=True)
    local = data == "camvid"
    train, val = (str(shards / "camvid-train"), str(shards / "camvid-val")) if local else ("scenes:train", "scenes:val")
    started, cpu = time.monotonic(), time_of_children()
    common = [f"data.shards={train}", f"run.seed={seed}", "data.workers=0"]
    if variant == KMEANS:
        recipe, steps = MULTISIAM[data]
        call(run, "train", recipe, *common, f"run.steps={steps}", "evaluate=[]", "--run", str(run), "--resume", "auto")
        size, labels = ("[180,240]", "camvid11") if local else ("[160,240]", "scenes10")
        options = [f"labels={labels}", f"size={size}", 'levels=["c3","c4","c5"]', 'baselines=["random"]', "data.workers=0"]
        call(run, "evaluate", "cluster", str(run), "--shards", val, *options)
        found = json.loads((run / "scores.json").read_text())["scores"][-1]
        scores = {k.removeprefix("cluster/"): v for k, v in found["scores"].items()}
        scores |= {k.replace("cluster/", "random/"): v for k, v in found["floors"]["random"].items()}
    else:
        evaluation = ["evaluate.0.every=0", f"evaluate.0.val={val}"]
        losses = "loss=[" + ", ".join(VARIANTS[variant]) + "]"
        call(run, "train", DATA[data], *common, *evaluation, losses, f"run.steps={steps}", "--run", str(run), "--resume", "auto")
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        scores = {k.removeprefix("score/cluster/"): v for k, v in last.items() if k.startswith("score/")}
    seconds = {"seconds": round(time.monotonic() - started, 1), "cpu_seconds_of_all_jobs": round(time_of_children() - cpu, 1)}
    return {"data": data, "variant": variant, "seed": seed, "steps": steps, **scores, **seconds}


def call(run: Path, *words: str) -> None:
    """`twinview WORDS` with one thread, its output into a log beside the run."""
    with run.with_suffix(".log").open("a") as log:
        subprocess.run([sys.executable, "-m", "twinview", *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)


def time_of_children() -> float:
    """CPU seconds of the processes that have ended so far."""
    spent = os.times()
    return spent.children_user + spent.children_system


def table(rows: list[Row]) -> list[str]:
    """Mean and deviation over seeds for each data set; runs that collapsed are counted."""
    lines = [f"{'':<26} " + " ".join(f"{d + ' mIoU':>16} {'accuracy':>9} {'entropy':>8} {'collapsed':>9}" for d in DATA)]
    named = [(v, v, "") for v in VARIANTS] + [("k-means, MultiSiam", KMEANS, ""), ("k-means, random start", KMEANS, "random/")]
    for title, variant, who in named:
        cells = []
        for data in DATA:
            found = [row for row in rows if row["data"] == data and row["variant"] == variant]
            scores = [row[f"{who}miou"] for row in found]
            if not scores:
                cells.append(" " * 45)
                continue
            spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
            accuracy, entropy = (statistics.mean(row[f"{who}{k}"] for row in found) for k in ("accuracy", "entropy"))
            gone = sum(row[f"{who}collapsed"] > 0 for row in found)
            cells.append(f"{statistics.mean(scores):>9.1f} +- {spread:<3.1f} {accuracy:>9.1f} {entropy:>8.2f} {f'{gone} of {len(found)}':>9}")
        lines.append(f"{title:<26} " + " ".join(cells))
    return lines


if __name__ == "__main__":
    main()
