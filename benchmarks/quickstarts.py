"""Every method's small recipe, trained once as it ships: what it ends with beside its random start, and what a step costs.

    python benchmarks/quickstarts.py                         # all quickstart and mixed recipes on drawn street scenes
    python benchmarks/quickstarts.py pixpro/quickstart --seeds 0 1 2
    python benchmarks/quickstarts.py --print                 # the table of the rows that are there; trains nothing

A recipe a run, a process a run, one thread; a run that was stopped goes on.  Rows go to benchmarks/results/quickstarts.jsonl with their commit;
a row of other code is made anew.  Recipes on other data than drawn scenes (mixed/mae_siameseim) want `--shards FOLDER`, which holds their shards.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from machine import processor
from proof.alone import alone, train
from proof.rows import ROOT, Row, Rows, code_hash, methods_of, table_hash
from twinview.errors import TwinviewError
from twinview.recipe.library import find
from twinview.recipe.overrides import override

RESULT = Path(__file__).parent / "results" / "quickstarts.jsonl"
SCORES = ("miou", "accuracy", "top1")  # last words of what evaluations give
SIGNALS = ("loss", "spread/online", "erank/online")  # of the first and the last logged step


def names() -> list[str]:
    """The small recipes that need nothing but drawn scenes."""
    folder = ROOT / "recipes"
    found = [path for path in sorted(folder.glob("*/*.toml")) if path.stem == "quickstart" or path.parent.name == "mixed"]
    return [path.relative_to(folder).with_suffix("").as_posix() for path in found if '"scenes:train"' in path.read_text()]


def train_in(folder: Path, file: Path, run: Path) -> dict[str, Any]:
    """`proof.alone.train` from a folder, where relative shards are."""
    os.chdir(folder)
    return train(file, run)


def trained(name: str, table: dict[str, Any], folder: Path, run: Path) -> Row:
    """Train in a process of its own, from `folder`, and say what came of it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    file = run.with_suffix(".toml")
    file.write_text(tomli_w.dumps(table))
    try:
        cost = alone(train_in, folder, file, run)
    except TwinviewError as e:
        sys.exit(f"{name}: {e} See {run.with_suffix('.log')}.")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {key: value for row in rows for key, value in row.items() if key.rpartition("/")[2] in SCORES and "/" in key}
    ends = {f"{where}/{key}": row[key] for where, row in (("first", rows[0]), ("last", rows[-1])) for key in SIGNALS if key in row}
    return {"steps": rows[-1]["step"], "scores": scores, **ends, **cost}


def table(rows: list[Row]) -> str:
    """A line a recipe, overrides and seed: its first score beside that of the random start, and how loss and features went."""
    titles = ["recipe", "with", "seed", "steps", "score", "random start", "loss", "effective rank", "CPU seconds", "commit"]
    lines = [titles, ["---"] * len(titles)]
    for row in sorted(rows, key=lambda row: (row["recipe"], row["seed"])):
        scores = {key.removeprefix("score/"): value for key, value in row["scores"].items()}
        own = next((key for key in scores if key.count("/") == 1), "")
        floor = scores.get(own.replace("/", "/random/"))
        score = f"{own} {scores[own]:.1f}" if own else ""
        went = [f"{row.get(f'first/{word}', math.nan):.2f} to {row.get(f'last/{word}', math.nan):.2f}" for word in ("loss", "erank/online")]
        seconds = f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else ""
        numbers = [str(row["seed"]), str(row["steps"]), score, "" if floor is None else f"{floor:.1f}", *went, seconds]
        lines.append([row["recipe"], " ".join(row["overrides"]), *numbers, row["commit"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Train what was asked for and is not there yet; print the table."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("recipes", nargs="*", metavar="METHOD/NAME", help="default: " + ", ".join(names()))
    ask.add_argument("--seeds", nargs="+", type=int, default=[0])
    ask.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "twinview-quickstarts", help="where the runs lie")
    ask.add_argument("--shards", type=Path, help="the folder that relative shards of a recipe lie in")
    ask.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of every recipe, as on the command line")
    ask.add_argument("--print", action="store_true", help="print the rows that are there; train nothing")
    args = ask.parse_args()
    rows = Rows(RESULT, ("recipe", "seed"))
    for name in [] if args.print else args.recipes or names():
        for seed in args.seeds:
            made = tomllib.loads(find(name).read_text())
            override(made, [f"run.seed={seed}", *args.set])
            version, code = table_hash(made), code_hash(methods=methods_of(made))
            key: dict[str, Any] = {"code": code, "recipe": name, "seed": seed, "recipe_hash": version}
            if rows.find(**key) is None:
                row = trained(name, made, args.shards or Path.cwd(), args.runs.resolve() / f"{name.replace('/', '-')}-{seed}-{version}-{code}")
                print(json.dumps(rows.add({**key, "overrides": args.set, **row, "processor": processor()})), flush=True)
    print(table(rows.rows))


if __name__ == "__main__":
    main()
