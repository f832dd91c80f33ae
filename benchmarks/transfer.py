"""What encoders are worth when they are trained further with labels: recipes of fine-tuning, segmentation and detection, from several weights.

    python benchmarks/transfer.py detect/scenes_r18 [key=value ...] --weights "" RUN ... [--seeds 0 1]
    python benchmarks/transfer.py --print                                       # the rows that are there; trains nothing

A JSON line a run in benchmarks/results/transfer.jsonl: recipe, weights ("": random start), seed, overrides, scores, CPU seconds, commit.  A run
that is there already, of this code, is not made again.  A score that was taken during the run has its step behind it: box/ap@100.
"""
from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from machine import processor
from proof.alone import alone, train
from proof.rows import Row, Rows, code_hash, methods_of, table_hash
from twinview.recipe import find, override

RESULTS = Path(__file__).parent / "results" / "transfer.jsonl"


def main() -> None:
    """Train from each of the weights with each seed."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("recipe", nargs="?")
    ask.add_argument("overrides", nargs="*")
    ask.add_argument("--weights", nargs="+", default=[""])
    ask.add_argument("--seeds", type=int, nargs="+", default=[0])
    ask.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    ask.add_argument("--print", action="store_true", help="print the rows that are there; train nothing")
    args = ask.parse_args()
    rows = Rows(RESULTS, ("recipe", "weights", "seed"))
    if args.print or not args.recipe:
        print("\n".join(text(row) for row in rows.rows))
        return
    for seed in args.seeds:
        for weights in args.weights:
            print(text(row_of(args.recipe, weights, seed, args.overrides, args.runs, rows)), flush=True)


def row_of(recipe: str, weights: str, seed: int, overrides: Sequence[str], runs: Path, rows: Rows) -> Row:
    """The row of this code for a run: found, or made now, in a process of its own; a run that was stopped goes on."""
    words = [*overrides, f"run.seed={seed}", *([f"encoder.weights={Path(weights).resolve()}"] if weights else [])]
    shipped = tomllib.loads(find(recipe).read_text(encoding="utf-8"))
    said = [word for word in overrides if not word.startswith(("data.shards=", "data.source.0.shards=", "evaluate.0.val="))]
    settings = table_hash({"recipe": shipped, "overrides": said})  # before the overrides, which change the table in place
    table = override(shipped, words)
    code, name = code_hash(methods=methods_of(table)), Path(weights).name
    key: dict[str, Any] = {"code": code, "recipe": recipe, "weights": name, "seed": seed, "recipe_hash": settings}
    found = rows.find(**key)
    if found is not None:
        return found
    run = runs / f"{recipe.replace('/', '-')}-{name}-{seed}-{key['recipe_hash']}-{code}"
    run.parent.mkdir(parents=True, exist_ok=True)
    file = run.with_suffix(".toml")
    file.write_text(tomli_w.dumps(table))
    cost = alone(train, file, run)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return rows.add({**key, "overrides": said, "scores": scores(logged), "steps": logged[-1]["step"], **cost, "processor": processor()})


def scores(logged: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The last ones by their names, earlier ones with their step behind."""
    found: dict[str, float] = {}
    for row in logged:
        last, at = row["step"] == logged[-1]["step"], f"@{row['step']}"
        found |= {f"{k.removeprefix('score/')}{'' if last else at}": round(v, 3) for k, v in row.items() if k.startswith("score/") and v is not None}
    return found


def text(row: Row) -> str:
    """A row in a line."""
    kept = ", ".join(f"{name} {value:.1f}" for name, value in row["scores"].items() if value == value)
    what = " ".join([row["recipe"], *row["overrides"], "from", row["weights"] or "its random start", f"seed {row['seed']}"])
    return f"{what}: {kept}; {row.get('cpu_seconds', 'unknown')} CPU s"


if __name__ == "__main__":
    main()
