"""`twinview evaluate`: score a finished run."""
from __future__ import annotations

import argparse
from pathlib import Path

from twinview.errors import TwinviewError
from twinview.terminal import answer


def evaluate(args: argparse.Namespace) -> None:
    """Run one evaluation on a run's last checkpoint and print its scores."""
    from twinview import api
    from twinview.analysis.evaluate import evaluate as score
    from twinview.analysis.evaluate import evaluation_recipe
    from twinview.cli.train import score_table
    from twinview.engine.collapse import collapses
    from twinview.engine.distributed.launch import launch
    from twinview.engine.distributed.process import leave
    from twinview.recipe import override

    if args.ranks < 1:
        raise TwinviewError(f"--ranks: wants a number above 0, not {args.ranks}.")
    run = Path(args.run)
    of_recipe = [text for text in args.overrides if "." in text.partition("=")[0]]
    options = override({}, [text for text in args.overrides if text not in of_recipe])
    recipe = evaluation_recipe(run, args.what, args.shards, options, of_recipe)
    assembly = api.checked(recipe)
    scores = launch(args.ranks, lambda: score(assembly, run, args.step), device=recipe.run.device)
    leave()
    if api.is_first():
        answer("\n".join([*score_table(scores), *(f"COLLAPSED   {line}" for line in collapses({f"score/{k}": v for k, v in scores.items()}))]))
