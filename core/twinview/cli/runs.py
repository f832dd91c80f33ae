"""`twinview runs` and `twinview compare`."""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from twinview.cli.commands import Commands, command
from twinview.errors import TwinviewError
from twinview.paths import expand
from twinview.terminal import answer, say


def add(commands: Commands) -> None:
    """Add `runs` and `compare` to the command line."""
    made = command(commands, "runs", runs, "list runs: state, step, recipe, loss, scores, age")
    made.add_argument("folder", metavar="DIR", nargs="?", default="runs", help="a folder of runs, however deep (default: runs)")
    made.add_argument("--json", action="store_true", help="all of it as JSON")
    made.add_argument("--delete", metavar="RUN", nargs="+", help="delete these runs, after asking")
    made.add_argument("--yes", action="store_true", help="do not ask")
    made = command(commands, "compare", compare, "runs beside one another: recipes, curves, scores over seeds, and whether more than chance")
    made.add_argument("runs", metavar="RUN", nargs="+", help="folders that `twinview train` wrote; they may still be under way")
    made.add_argument("--out", metavar="FILE.html", help="a page with the curves on one axis")
    made.add_argument("--json", action="store_true", help="all of it as JSON")


def runs(args: argparse.Namespace) -> None:
    """List runs, or delete some."""
    from twinview.analysis.report.runs import find_runs, runs_table

    if args.delete:
        delete([expand(one, "--delete") for one in args.delete], sure=args.yes)
        return
    if args.yes:
        raise TwinviewError("--yes: goes with --delete. Leave it out.")
    found = find_runs(expand(args.folder, "DIR"))
    if args.json:
        answer(json.dumps([run.as_row() for run in found], indent=1))
    elif found:
        answer("\n".join(runs_table(found)))
    else:
        answer(f"{args.folder}: holds no runs")


def delete(folders: list[Path], *, sure: bool) -> None:
    """Delete runs, after a yes at the terminal."""
    from twinview.analysis.report.runs import delete as remove
    from twinview.analysis.report.runs import open_run, size_of

    found = [open_run(folder) for folder in folders]
    for run in found:
        of = f"step {run.step}" + (f" of {run.steps}" if run.steps else "")
        answer(f"{run.folder}: {run.state}, {of}, {size_of(run.folder) / 1e6:.0f} MB")
    if not sure:
        if not sys.stdin.isatty():
            raise TwinviewError("--delete: asks, and nobody is at the terminal. Write --yes to delete without being asked.")
        say(f"Delete {'this run' if len(found) == 1 else f'these {len(found)} runs'} for good? [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            answer("nothing deleted")
            return
    for run in found:
        remove(run)
        answer(f"deleted {run.folder}")


def compare(args: argparse.Namespace) -> None:
    """Compare runs, and write a page of it."""
    from twinview.analysis.report.compare import compare as compared
    from twinview.analysis.report.runs import open_run

    out = expand(args.out, "--out") if args.out else None
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise TwinviewError(f"--out: wants a file that ends in .html, not {args.out!r}.")
    folders = list(dict.fromkeys(expand(one, "RUN") for one in args.runs))
    found = compared([open_run(folder) for folder in folders])
    answer(json.dumps(found.as_json(), indent=1) if args.json else "\n".join(found.text()))
    if out is not None:
        from twinview.analysis.report.compare_page import compare_page
        from twinview.files import write_text

        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, compare_page(found))
        if not args.json:
            answer(f"\npage  {out}")
