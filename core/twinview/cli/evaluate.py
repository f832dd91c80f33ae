"""`twinview evaluate`: score a finished run."""
from __future__ import annotations

import argparse

from twinview.cli.commands import Commands, command
from twinview.cli.table import score_table, signs
from twinview.errors import TwinviewError
from twinview.paths import expand
from twinview.terminal import answer


def add(commands: Commands) -> None:
    """Add `evaluate` to the command line."""
    made = command(commands, "evaluate", evaluate, "score a run with one evaluation, for example cluster, segment or knn")
    made.add_argument("what", metavar="WHAT", help="an evaluation of `twinview parts`: cluster, or probes.cluster; or one of the run's by name")
    made.add_argument("run", metavar="RUN", help="the folder that `twinview train` wrote")
    made.add_argument("overrides", metavar="key=value", nargs="*", help="options of the evaluation; with a dot, keys of the run's recipe")
    made.add_argument("--shards", metavar="SHARDS", help="shards to score on (its option val)")
    made.add_argument("--step", metavar="N", type=int, help="the checkpoint of this step (default: the last)")
    made.add_argument("--ranks", metavar="N", type=int, default=1, help="processes on this machine (default: 1)")


def evaluate(args: argparse.Namespace) -> None:
    """Run one evaluation on a run's last checkpoint and print its scores."""
    from twinview import api
    from twinview.analysis.evaluate import evaluate as score
    from twinview.analysis.evaluate import evaluation_recipe
    from twinview.engine.collapse import below_start, collapses
    from twinview.engine.distributed.launch import launch
    from twinview.engine.distributed.process import leave
    from twinview.recipe import override

    if args.ranks < 1:
        raise TwinviewError(f"--ranks: wants a number above 0, not {args.ranks}.")
    run = expand(args.run, "RUN")
    of_recipe = [text for text in args.overrides if "." in text.partition("=")[0]]
    options = override({}, [text for text in args.overrides if text not in of_recipe])
    recipe = evaluation_recipe(run, args.what, args.shards, options, of_recipe)
    assembly = api.checked(recipe)
    scores = launch(args.ranks, lambda: score(assembly, run, args.step), device=recipe.run.device)
    leave()
    if api.is_first():
        collapsed = collapses({f"score/{name}": value for name, value in scores.items()})
        answer("\n".join([*score_table(scores), *signs(collapsed, below_start(scores))]))
