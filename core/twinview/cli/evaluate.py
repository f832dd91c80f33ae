"""`twinview evaluate`: score a finished run, an exported file, a checkpoint of another project, or weights by name."""
from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinview.cli.commands import TARGET, Commands, command
from twinview.cli.table import score_table, signs
from twinview.errors import TwinviewError
from twinview.terminal import answer

if TYPE_CHECKING:
    from twinview.analysis.evaluate import Evaluated


def add(commands: Commands) -> None:
    """Add `evaluate` to the command line."""
    made = command(commands, "evaluate", evaluate, "score a run or any weights with one evaluation, for example knn, linear or segment")
    made.add_argument("what", metavar="WHAT", help="an evaluation of `twinview parts`: cluster, or probes.cluster; or one of the run's by name")
    made.add_argument("target", metavar="TARGET", help=TARGET)
    made.add_argument("overrides", metavar="key=value", nargs="*", help="options of the evaluation; with a dot, keys of the recipe")
    made.add_argument("--shards", metavar="SHARDS", help="shards to score on (its option val)")
    made.add_argument("--step", metavar="N", type=int, help="the checkpoint of this step (default: the last)")
    made.add_argument("--best", action="store_true", help="the checkpoint that run.keep_best marked")
    made.add_argument("--ranks", metavar="N", type=int, default=1, help="processes on this machine (default: 1)")
    made.add_argument("--json", action="store_true", help="the scores and all that they are scores of as JSON")


def evaluate(args: argparse.Namespace) -> None:
    """Run one evaluation and print its scores."""
    from twinview import api
    from twinview.analysis.evaluate import evaluate as score
    from twinview.analysis.evaluate import evaluation_recipe
    from twinview.analysis.targets import find_target
    from twinview.engine.collapse import below_start, collapses
    from twinview.engine.distributed.launch import launch
    from twinview.engine.distributed.process import leave
    from twinview.recipe import override

    if args.ranks < 1:
        raise TwinviewError(f"--ranks: wants a number above 0, not {args.ranks}.")
    if args.best and args.step is not None:
        raise TwinviewError("--best: names one checkpoint and --step another. Leave one out.")
    of_recipe = [text for text in args.overrides if "." in text.partition("=")[0]]
    given = override({}, [text for text in args.overrides if text not in of_recipe])
    target = find_target(args.target, of_recipe, step=args.step)
    if args.best and target.run is None:
        raise TwinviewError(f"{args.target}: --best is of a run. Leave it out.")
    recipe = evaluation_recipe(target.recipe(given.get("train") or args.shards or given.get("val") or ""), args.what, args.shards, given)
    assembly = api.checked(recipe)
    words = " ".join(["twinview", *sys.argv[1:]])
    found = launch(args.ranks, lambda: score(assembly, target, args.best, words), device=recipe.run.device)
    leave()
    if api.is_first():
        collapsed = collapses({f"score/{name}": value for name, value in found.scores.items()})
        below = below_start(found.scores)
        if args.json:
            answer(json.dumps({**as_json(found, target.scores), "collapsed": collapsed, "below_start": below}, indent=1))
        else:
            answer("\n".join([*score_table(found.scores), *signs(collapsed, below), protocol(found.row), f"kept in {target.scores}: {found.said}"]))


def as_json(found: Evaluated, file: Path) -> dict[str, Any]:
    """The row as `scores.json` keeps it, and what came of that; a score that is no number is null."""
    from twinview.analysis.scores import split_floors

    own, floors = split_floors({name: value if math.isfinite(value) else None for name, value in found.scores.items()})
    return {**found.row, "scores": own, "floors": floors, "kept_in": str(file), "said": found.said}


def protocol(row: Mapping[str, Any]) -> str:
    """What the scores are of, in a line: evaluation, checkpoint, seed, and every option."""
    point = row["checkpoint"]
    marks = [word for word in ("last", "best") if point.get(word)]
    which = f" ({' and '.join(marks)})" if marks else ""
    of = f"checkpoint of step {point['step']}{which}" if "step" in point else f"weights {point['weights']}"
    options = " ".join(f"{name}={value}" for name, value in row["protocol"].items())
    return f"{row['use']}, {of}, seed {row['seed']}: {options}"
