"""Every evaluation on real images beside its anchors: an untrained network, raw pixels, a run without labels, the same network trained with labels.

    python benchmarks/evaluations.py classes --shards shards [--seeds 20 21]    # CIFAR-10: kNN, linear probes, few labels, corrupted images
    python benchmarks/evaluations.py maps --shards shards                       # street scenes of another place: cells
    python benchmarks/evaluations.py maps --print                               # the table of the rows that are there; trains nothing

Shards as docs/proof.md packs them.  Trains what is missing, with the settings of benchmarks/proof, and scores it as `twinview evaluate` does.
A JSON line for each evaluation of a run in benchmarks/results/evaluations.jsonl; the random start is a run of its own, with raw pixels beside it.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import mean
from typing import Any

import attrs
import tomli_w
import torch

from machine import processor
from proof.alone import alone, train
from proof.corrupt import CORRUPTIONS, SEVERITIES, corrupted
from proof.data import require_shards
from proof.methods import TASKS, Table, Task
from proof.rows import Row, Rows, table_hash
from twinview import api
from twinview.analysis.evaluate import evaluate, evaluation_recipe
from twinview.analysis.targets import find_target

RESULTS = Path(__file__).parent / "results" / "evaluations.jsonl"
TASK = {"classes": TASKS["cifar-resnet"], "maps": TASKS["streets"]}
METHODS = {"classes": ["random", "simclr", "labels"], "maps": ["random", "multisiam", "labels"]}
UNTRAINED: Table = {"loss": [{"use": "supervised.nothing"}], "run": {"steps": 1}}  # the random start as a run, for evaluations without that floor
LABELS: dict[str, Table] = {  # training with the labels of the images that the probes learn from
    "classes": {"views": {"use": "byol.crops", "views": 1, "size": 32, "scale": [0.3, 1.0]}, "loss": [{"use": "supervised.classes"}]},
    "maps": {
        "views": {"use": "finetune.scaled_crops", "size": [96, 128], "base": [192, 256], "scale": [0.5, 1.5]},
        "loss": [{"use": "finetune.upernet", "width": 64, "auxiliary_width": 64, "classes": 8, "ignore": [8, 255]}],
    },
}
MAPS: Table = {"classes": 8, "ignore": [8, 255]}
EVALUATIONS: dict[str, dict[str, tuple[str, Table]]] = {  # name in the table -> evaluation, options; the measure is the one of MEASURE
    "classes": {
        "nearest neighbors, k = 20": ("knn", {}),
        "linear, L-BFGS": ("linear", {"solver": "lbfgs"}),
        "linear, MoCo's table": ("linear", {"solver": "moco"}),
        "linear, MAE's table": ("linear", {"solver": "mae"}),
        "few labels, 1 %": ("fewshot", {"share": 0.01, "draws": 5}),
        "few labels, 10 %": ("fewshot", {"share": 0.1, "draws": 5}),
        "corrupted images, mean error": ("robustness", {"corruptions": [*CORRUPTIONS], "severities": [*SEVERITIES]}),
    },
    "maps": {"linear, cells": ("segment", {**MAPS, "images": 0}), "nearest cells": ("cells", {**MAPS, "cells": 16})},
}
MEASURE = {
    **{"knn": "knn/top1", "linear": "linear/top1", "fewshot": "fewshot/top1", "robustness": "robustness/mean_error"},
    **{"segment": "segment/miou", "cells": "cells/miou"},
}


def main() -> None:
    """Train, evaluate, print."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("kind", choices=list(TASK))
    ask.add_argument("--shards", type=Path, default=Path("shards"))
    ask.add_argument("--bank", type=Path, help="labelled shards that probes of whole images learn from (default: all training images)")
    ask.add_argument("--methods", nargs="+", help="others of the task, of benchmarks/proof (default: those of the table)")
    ask.add_argument("--seeds", type=int, nargs="+", default=[20, 21])
    ask.add_argument("--runs", type=Path, default=Path("runs/evaluations"))
    ask.add_argument("--only", nargs="+", help="evaluations, by the names of their tables' rows (default: all)")
    ask.add_argument("--train", action="store_true", help="train what is missing and score nothing")
    ask.add_argument("--print", action="store_true", help="print the table of the rows that are there; train nothing")
    args = ask.parse_args()
    unknown = [name for name in args.only or () if name not in EVALUATIONS[args.kind]]
    if unknown:
        ask.error(f"--only: {args.kind} has no row {unknown[0]!r}. There is: {'; '.join(EVALUATIONS[args.kind])}")
    rows = Rows(RESULTS, ("kind", "evaluation", "method", "seed"))
    if not args.print:
        task = TASK[args.kind]
        require_shards(args.shards, *task.train, task.bank, task.val)
        torch.set_num_threads(1)
        for seed in args.seeds:
            for method in args.methods or METHODS[args.kind]:
                run = trained(args.kind, method, seed, args.shards.resolve(), args.runs)
                for name in (args.only or EVALUATIONS[args.kind]) if not args.train else ():
                    row_of(args, name, method, seed, run, rows)
    print("\n".join(table([row for row in rows.rows if row["kind"] == args.kind], args.kind)))


def trained(kind: str, method: str, seed: int, shards: Path, runs: Path) -> Path:
    """The run of a method, made where it is missing; one that was stopped goes on."""
    recipe = recipe_of(TASK[kind], kind, method, seed, shards)
    run = runs / f"{TASK[kind].name}-{method}-{seed}-{table_hash({**recipe, 'data': ''})}"
    if not (run / "done").is_file():
        run.parent.mkdir(parents=True, exist_ok=True)
        file = run.with_suffix(".toml")
        file.write_text(tomli_w.dumps(recipe))
        print(run.name, alone(train, file, run), flush=True)
        (run / "done").touch()
    return run


def recipe_of(task: Task, kind: str, method: str, seed: int, shards: Path) -> Table:
    """The task's recipe for one of its methods, for training with labels, or for no training at all."""
    if method in task.methods:
        return task.recipe(method, seed, shards)
    own = LABELS[kind] if method == "labels" else {**LABELS[kind], **UNTRAINED}
    base = {key: value for key, value in task.base.items() if key not in ("views", "augment")}
    plain = attrs.evolve(task, base=base, methods={method: {**own, "target": {"momentum": 0.0}}}, train=(task.bank,))
    return plain.recipe(method, seed, shards)


def row_of(args: argparse.Namespace, name: str, method: str, seed: int, run: Path, rows: Rows) -> Row:
    """The row of this code for an evaluation of a run: found, or made now."""
    task, (what, options) = TASK[args.kind], EVALUATIONS[args.kind][name]
    key = {"kind": args.kind, "evaluation": name, "method": method, "seed": seed, "recipe_hash": table_hash({**options, "run": run.name})}
    found = rows.find(**key)
    if found is not None:
        return found
    bank = args.bank or args.shards / task.bank
    asked = {**options, "train": str(bank), "val": str(args.shards / task.val), "size": [*task.size]}
    if what == "robustness":
        asked["corrupted"] = corrupted(args.shards / task.val, task.size, args.shards / f"{task.val}-corrupted")
    if what != "robustness":
        asked["baselines"] = ["pixels"] if method == "random" and what != "fewshot" else []
    target = find_target(run, ["data.workers=0"])
    began = time.process_time()
    scored = evaluate(api.checked(evaluation_recipe(target.recipe(), what, None, asked)), target)
    spent = round(time.process_time() - began, 1)
    scores = {name: round(value, 3) for name, value in scored.scores.items()}
    made = {**key, "run": run.name, "bank": bank.name, "options": options, "scores": scores, "cpu_seconds": spent, "machine": processor()}
    print({**{k: key[k] for k in ("evaluation", "method", "seed")}, **scores}, flush=True)
    return rows.add(made)


def table(rows: list[Row], kind: str) -> list[str]:
    """Markdown: a line for each evaluation; means over seeds, the numbers behind them."""
    newest: dict[tuple[str, str, int], Row] = {(row["evaluation"], row["method"], row["seed"]): row for row in rows}
    found = [f"| | {' | '.join(['raw pixels', *METHODS[kind]])} |", "|" + "---|" * (len(METHODS[kind]) + 2)]
    for name, (what, _) in EVALUATIONS[kind].items():
        mine = {method: [row["scores"] for (e, m, _), row in newest.items() if (e, m) == (name, method)] for method in METHODS[kind]}
        first, measure = MEASURE[what].split("/")
        pixels = sorted({scores.get(f"{first}/pixels/{measure}") for several in mine.values() for scores in several} - {None})
        cells = [_mean(pixels[:1]), *(_mean([scores[MEASURE[what]] for scores in mine[method]]) for method in METHODS[kind])]
        found.append(f"| {name} | {' | '.join(cells)} |")
    return found


def _mean(values: list[Any]) -> str:
    if not values:
        return ""
    each = f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{each}"


if __name__ == "__main__":
    main()
