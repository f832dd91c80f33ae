"""`twinview train`."""
from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from twinview.cli.commands import Commands, command, recipe_arguments
from twinview.cli.table import score_table, signs
from twinview.errors import TwinviewError
from twinview.terminal import answer

if TYPE_CHECKING:
    from twinview.engine.run_folder import Resume
    from twinview.engine.train import RunResult

NAMED = 10  # bad samples in a run's summary


def add(commands: Commands) -> None:
    """Add `train` to the command line."""
    made = command(commands, "train", train, "train a recipe")
    recipe_arguments(made)
    made.add_argument("--run", metavar="DIR", help="the run's folder (default: runs/RECIPE)")
    made.add_argument("--resume", action="store_true", help="go on where the run stopped")
    made.add_argument("--resume-auto", action="store_true", help="start, or go on if the folder has a run (also written --resume auto)")
    made.add_argument("--ranks", metavar="N", type=int, default=1, help="processes on this machine (default: 1; launchers set their own)")
    made.add_argument("--seeds", metavar="N,N,...", help="a run for each seed, one after another, in DIR-seedN; then their scores side by side")
    made.add_argument("--dry-run", action="store_true", help="one real batch: memory, seconds a step, who answers what; writes nothing")


def train(args: argparse.Namespace) -> None:
    """Train a recipe and say what came of it."""
    from twinview import api
    from twinview.engine.distributed.process import leave

    if args.ranks < 1:
        raise TwinviewError(f"--ranks: wants a number above 0, not {args.ranks}.")
    if args.seeds is not None:
        from twinview.cli.seeds import train_seeds

        train_seeds(args)
        return
    if args.dry_run:
        if args.run or args.resume or args.resume_auto:
            raise TwinviewError("--dry-run: writes and reads no run. Leave --run and --resume out.")
        dry_run(args)
        return
    resume: Resume = "auto" if args.resume_auto else bool(args.resume)
    result = api.train(args.recipe, *args.overrides, run=args.run, resume=resume, ranks=args.ranks)
    if api.is_first():
        answer("\n".join(summary(result)))
    leave()


def dry_run(args: argparse.Namespace) -> None:
    """One real batch through the whole step."""
    from twinview import api
    from twinview.cli.recipes import answers
    from twinview.engine.distributed.launch import launch
    from twinview.engine.distributed.process import leave
    from twinview.planning.dry_run import dry_run as measure
    from twinview.recipe import read

    recipe = read(args.recipe, args.overrides)
    assembly = api.checked(recipe)
    report = launch(args.ranks, lambda: measure(recipe, assembly), device=recipe.run.device)
    leave()
    if not api.is_first():
        return
    for name, value in report.items():
        answer(f"{name:<11} {value}")
    answer("\n".join(answers(assembly)))


def summary(result: RunResult) -> list[str]:
    """A small table of scores, a row for each network that was evaluated, signs of collapse, and where everything is."""
    from twinview.engine.collapse import below_start

    lines = ["", *score_table(result.scores), *signs(result.collapsed, below_start(result.scores))]
    if result.bad_samples:
        lines += [f"bad samples {len(result.bad_samples)}; others stood in for them", *(f"  {one}" for one in result.bad_samples[:NAMED]), ""]
    if result.bad_steps:
        lines += [f"bad steps   {result.bad_steps}; left out, their images are named in {result.folder / 'nonfinite'}", ""]
    places = {"run": result.folder, "checkpoint": result.checkpoint, "metrics": "metrics.jsonl", "pictures": "pictures"}
    return lines + [f"{what:<12}{result.folder / place if isinstance(place, str) else place}" for what, place in places.items()]
