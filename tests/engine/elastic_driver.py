"""Trains FOLDER/recipe.json into FOLDER/run on 1, 2, 4 and 1 ranks in turn, each under a ZeRO stage of its own: python elastic_driver.py FOLDER.

SIGTERM goes to the process that started the ranks, as from a scheduler; the exit codes are printed.
"""
from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from twinview.assembly import assemble
from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import quiet_deepspeed
from twinview.engine.train import train
from twinview.errors import Preempted
from twinview.recipe import from_table

OPTIMIZERS = "deepspeed.runtime.zero.muon.muon_optimizer"  # asked for under stages 1-3; three seconds of torch._inductor
SITTINGS = ((1, 2, 3), (2, 1, 6), (4, 3, 9), (1, 0, 0))  # ranks, stage, rows to wait for


def begin(folder: Path, ranks: int, stage: int) -> int:
    """A child that trains, or goes on."""
    table = {**json.loads((folder / "recipe.json").read_text()), "deepspeed": {"zero_optimization": {"stage": stage}}}
    child = os.fork()
    if child == 0:
        code = 1
        try:
            launch(ranks, lambda: train(from_table(table), folder / "run", resume="auto"))
            code = 0
        except Preempted:
            code = 143
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def main() -> None:
    folder, codes = Path(sys.argv[1]), []
    quiet_deepspeed("cpu")
    importlib.import_module(OPTIMIZERS)  # as every rank would for itself
    assemble(from_table(json.loads((folder / "recipe.json").read_text())))
    rows = folder / "run/metrics.jsonl"
    for ranks, stage, enough in SITTINGS:
        child = begin(folder, ranks, stage)
        while enough and (not rows.is_file() or rows.read_bytes().count(b"\n") < enough):
            time.sleep(0.005)
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
        if enough:
            os.kill(child, signal.SIGTERM)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
