"""DenseSiam's losses one by one on CamVid, and all together on drawn street scenes: mIoU of unsupervised segmentation (Hungarian), several seeds.

    twinview shards pack images CAMVID/images/train shards/camvid-train --labels CAMVID/labels/train
    twinview shards pack images CAMVID/images/val shards/camvid-val --labels CAMVID/labels/val
    python benchmarks/densesiam.py --shards shards --runs runs/densesiam

Every run starts at random, uses no label, and has one thread and at most six minutes of it. Beside them stands k-means (as many clusters as classes)
on c3 to c5 of a random start and of MultiSiam trained for about as long. Resumable: a run that is there is not repeated, one that was stopped goes
on. A JSON line per run in benchmarks/results/densesiam.jsonl.
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
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--steps", type=int, default=100, help="of each DenseSiam run")
    ask.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    args = ask.parse_args()
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
    done = {(row["data"], row["variant"], row["seed"]) for row in rows}
    wanted = [(data, variant, seed) for seed in range(args.seeds) for data in DATA for variant in WANTED[data]]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(one, *what, args.shards.resolve(), args.runs.resolve(), args.steps) for what in wanted if what not in done]
        for run in as_completed(runs):
            rows.append(run.result())
            rows.sort(key=lambda row: (row["data"], row["seed"], row["variant"]))
            RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print("\n".join(table(rows)))


def one(data: str, variant: str, seed: int, shards: Path, runs: Path, steps: int) -> dict[str, Any]:
    """One run in a process of its own: its scores, or with `k-means` those of MultiSiam's features and of their random start."""
    run = runs / f"{data}-{variant.replace(' ', '').replace('+', '')}-{seed}"
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
        found = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
        scores = {k.removeprefix("cluster/"): v for k, v in found.items() if k.startswith("cluster/")}
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


def table(rows: list[dict[str, Any]]) -> list[str]:
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
