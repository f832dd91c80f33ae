"""Does a method learn? Beside raw pixels, a random start and supervision on the same images, at one budget, on seeds that nobody tuned on.

    python benchmarks/prove.py cifar-resnet --shards shards                      # every method of the task, seeds 20 to 22, then the table
    python benchmarks/prove.py streets --methods byol multisiam --seeds 20 21 22 23 24 25 26 27 28 29
    python benchmarks/prove.py cifar-vit --print                                 # the table of the rows that are there; trains nothing
    python benchmarks/prove.py cifar-vit --on streets-vit                        # the encoders of one task, probed as those of another
    python benchmarks/prove.py streets --compare multisiam byol                  # paired, with intervals over seeds and over images; trains nothing

What the shards are packed from, and the protocol: docs/proof.md.  Trains anew: rows are taken from benchmarks/results/proof.jsonl only where the very
same code (core/, plugins/) and recipe made them.  A run that was stopped goes on.  One core a run; start several with different --methods or --seeds.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from proof.data import require_shards
from proof.figure import curves, figure
from proof.methods import TASKS
from proof.rows import Rows
from proof.run import FLOORS, name_on, row_of
from proof.table import compared, newest, table, with_curves

RESULTS = Path(__file__).parent / "results" / "proof.jsonl"


def main() -> None:
    """Make the rows that are missing, then print the table."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("task", choices=list(TASKS))
    ask.add_argument("--methods", nargs="+", help="default: all of the task, with its floors")
    ask.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    ask.add_argument("--shards", type=Path, default=Path("shards"))
    ask.add_argument("--runs", type=Path, default=Path("runs/proof"))
    ask.add_argument("--results", type=Path, default=RESULTS)
    ask.add_argument("--print", action="store_true", help="print the table of the rows that are there, by commit; train nothing")
    ask.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for every recipe, values in JSON: optimizer.lr=0.003")
    ask.add_argument("--curve", action="store_true", help="score the checkpoints that were kept on the way too")
    ask.add_argument("--on", choices=list(TASKS), help="probe the encoders with the images and features of this task, which they were not trained on")
    ask.add_argument("--compare", nargs=2, metavar=("A", "B"), help="the paired difference of two methods in the rows that are there; trains nothing")
    ask.add_argument("--figure", type=Path, metavar="SVG", help="draw the rows that are there, or those of --methods; train nothing")
    ask.add_argument("--curves", type=Path, metavar="SVG", help="draw the scores over the steps of the rows made with --curve; train nothing")
    ask.add_argument("--probe", choices=["linear", "knn", "miou", "cluster"], help="of the figure (default: linear, of scenes miou)")
    args = ask.parse_args()
    task, on = TASKS[args.task], TASKS[args.on] if args.on else None
    rows = Rows(args.results, ("task", "method", "seed"))
    probe = args.probe or ("linear" if task.kind == "classes" else "miou")
    if args.print:
        for at, found in rows.by_commit().items():
            print("\n".join([f"commit {at}", *table([row for row in found if row["task"] == name_on(task, on)]), ""]))
        return
    if args.compare:
        print("\n".join(compared(rows.by_commit(), name_on(task, on), *args.compare)))
        return
    if args.figure:
        shown = [row for row in newest(rows.by_commit(), name_on(task, on)) if not args.methods or row["method"] in args.methods]
        args.figure.write_text(figure(shown, probe, task.title))
        return
    if args.curves:
        args.curves.write_text(curves(with_curves(rows.by_commit(), task.name), probe, task.title))
        return
    unknown = set(args.methods or ()) - {*FLOORS, *task.methods}
    if unknown:
        ask.error(f"--methods: {task.name} has no {', '.join(sorted(unknown))}. There is: {', '.join([*FLOORS, *task.methods])}")
    if on and (others := [name for name in FLOORS if name != "random" and name in (args.methods or ())]):
        ask.error(f"--on: probes encoders of runs and random starts. Leave {' and '.join(others)} out of --methods")
    require_shards(args.shards, *(name for one in (task, on or task) for name in (*one.train, one.bank, one.val)))
    torch.set_num_threads(1)
    try:
        overrides: dict[str, Any] = {key: json.loads(value) for key, value in (text.split("=", 1) for text in args.set)}
    except ValueError:
        ask.error(f"--set: takes KEY=VALUE, values in JSON, not {' '.join(args.set)}")
    made = []
    for seed in args.seeds:
        for method in args.methods or (["random", *task.methods] if on else [*FLOORS, *task.methods]):
            row = row_of(task, method, seed, args.shards.resolve(), args.runs, rows, overrides, args.curve, on)
            made.append(row)
            print({key: row.get(key) for key in ("task", "method", "seed", "linear", "knn", "miou", "cpu_seconds")}, flush=True)
    print("\n".join(table(made)))


if __name__ == "__main__":
    main()
