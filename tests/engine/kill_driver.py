"""Trains FOLDER/recipe.json once whole and once killed again and again: python kill_driver.py FOLDER RANKS.

Every run is a process group forked from this process, which pays for the imports once; the signal goes to all of the group at once.
"""
from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from twinview.assembly import assemble
from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import quiet_deepspeed
from twinview.engine.train import train
from twinview.recipe import from_table


def begin(folder: Path, run: str, ranks: int) -> int:
    """A child that trains, or goes on."""
    table = json.loads((folder / "recipe.json").read_text())
    table["run"]["sync_batchnorm"] = False
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 1
        try:
            launch(ranks, lambda: train(from_table(table), folder / run, resume="auto"))
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def wait_for_rows(path: Path, more_than: int, child: int) -> int:
    while (rows := path.read_bytes().count(b"\n") if path.is_file() else 0) <= more_than:
        time.sleep(0.002)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
    return rows


def main() -> None:
    """Print how many rows each killed run had written."""
    folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
    quiet_deepspeed("cpu")
    assemble(from_table(json.loads((folder / "recipe.json").read_text())))  # imports the methods
    assert os.waitpid(begin(folder, "whole", ranks), 0)[1] == 0
    draw, stopped_at = random.Random(ranks), []
    for least in (1, 7, 13, 20):
        child = begin(folder, "killed", ranks)
        wait_for_rows(folder / "killed/metrics.jsonl", least, child)
        time.sleep(draw.uniform(0, 0.03))
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        stopped_at.append((folder / "killed/metrics.jsonl").read_bytes().count(b"\n"))
    assert os.waitpid(begin(folder, "killed", ranks), 0)[1] == 0
    print(json.dumps(stopped_at))


if __name__ == "__main__":
    main()
