"""`twinview train`."""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from twinview.errors import TwinviewError
from twinview.terminal import answer

if TYPE_CHECKING:
    from twinview.engine.run_folder import Resume
    from twinview.engine.train import RunResult

NAMED = 10  # bad samples in a run's summary


def train(args: argparse.Namespace) -> None:
    """Train a recipe and say what came of it."""
    from twinview import api
    from twinview.engine.distributed.process import leave

    if args.ranks < 1:
        raise TwinviewError(f"--ranks: wants a number above 0, not {args.ranks}.")
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
    lines = ["", *score_table(result.scores), *(f"COLLAPSED   {line}" for line in result.collapsed)]
    if result.bad_samples:
        lines += [f"bad samples {len(result.bad_samples)}; others stood in for them", *(f"  {one}" for one in result.bad_samples[:NAMED]), ""]
    if result.bad_steps:
        lines += [f"bad steps   {result.bad_steps}; left out, their images are named in {result.folder / 'nonfinite'}", ""]
    places = {"run": result.folder, "checkpoint": result.checkpoint, "metrics": "metrics.jsonl", "pictures": "pictures"}
    return lines + [f"{what:<12}{result.folder / place if isinstance(place, str) else place}" for what, place in places.items()]


def score_table(scores: Mapping[str, float]) -> list[str]:
    """Scores `probe/measure` and `probe/baseline/measure` as a table: a row for each network, a column for each measure."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in scores.items():
        *probe, measure = name.split("/")
        if measure == "collapsed":
            continue  # said in words
        who = probe[1] if len(probe) > 1 else "trained"
        rows.setdefault(who, {})[f"{probe[0] if probe else ''} {measure}".strip()] = value
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    if not rows:
        return []
    width = max(len(r) for r in rows)
    lines = ["  ".join([" " * width, *columns])]
    for who, row in rows.items():
        lines.append("  ".join([f"{who:<{width}}", *(f"{row[c]:>{len(c)}.3f}" if c in row else " " * len(c) for c in columns)]))
    return [*lines, ""]
