"""`twinview train --seeds 0,1,2`: a run for each seed, each in a process of its own."""
from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys

from twinview.errors import TwinviewError
from twinview.machine import rank_variable
from twinview.terminal import answer, say


def train_seeds(args: argparse.Namespace) -> None:
    """Train a recipe with each seed in turn, and say what came of all; the first run that fails ends it, with its exit code."""
    seeds = parsed(args.seeds)
    if rank_variable("WORLD_SIZE", 1) > 1:
        raise TwinviewError("--seeds: starts processes of its own. Under a launcher start each run by itself, with run.seed=N.")
    if args.dry_run:
        raise TwinviewError("--seeds: --dry-run takes one batch, and no seed changes what it says. Leave --seeds out.")
    if any(text.startswith("run.seed=") for text in args.overrides):
        raise TwinviewError("--seeds: run.seed is set by it. Leave run.seed out.")
    from twinview import api
    from twinview.analysis.report.compare import compare
    from twinview.analysis.report.runs import open_run
    from twinview.recipe import read

    base = api.run_folder(read(args.recipe, args.overrides), args.run)
    folders = [base.with_name(f"{base.name}-seed{seed}") for seed in seeds]
    going_on = ["--resume-auto"] if args.resume_auto or args.resume else []
    for seed, folder in zip(seeds, folders):
        say(f"seed {seed}: {folder}")
        words = ["train", args.recipe, *args.overrides, f"run.seed={seed}", "--run", str(folder), "--ranks", str(args.ranks), *going_on]
        code = run_command([sys.executable, "-m", "twinview", *words])
        if code:
            say(f"twinview: seed {seed} ended with exit code {code}; `--resume` goes on with what is there.")
            raise SystemExit(code)
    found = compare([open_run(folder) for folder in folders])
    answer("\n".join(["", *found.text(), "", f"twinview compare {' '.join(map(str, folders))}"]))


def parsed(text: str) -> list[int]:
    """`0,1,2` or `0..4` -> whole numbers, each once.  Raises TwinviewError."""
    span = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if span and int(span[1]) <= int(span[2]) < int(span[1]) + 1000:
        return list(range(int(span[1]), int(span[2]) + 1))
    words = text.split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise TwinviewError(f"--seeds: wants whole numbers with commas, 0,1,2, or a span, 0..4, not {text!r}.")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise TwinviewError(f"--seeds: {text} names a seed twice.")
    return seeds


def run_command(command: list[str]) -> int:
    """The exit code of a process; told to end, this one waits for the run to save, and gives the signal's code, so that no other seed begins.

    A terminal sends Ctrl-C to both; a scheduler's SIGTERM is passed on.
    """
    from twinview.engine.distributed.preempt import on_signals

    told: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def tell(number: int) -> None:
        told.append(number)
        if number == signal.SIGTERM and process is not None:
            process.terminate()

    with on_signals(tell):
        process = subprocess.Popen(command)
        if signal.SIGTERM in told:  # before there was anyone to tell
            process.terminate()
        code = process.wait()
    return 128 - code if code < 0 else code or (128 + told[0] if told else 0)
