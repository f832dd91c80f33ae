"""A training in a process of its own, forked from one that has paid for the imports once: a short run costs less than they do."""
from __future__ import annotations

import json
import multiprocessing as mp
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def _forks() -> Any:
    found = mp.get_context("forkserver")
    found.set_forkserver_preload(["proof.imports"])
    return found


def alone(work: Callable[..., T], *args: Any) -> T:
    """What `work(*args)` gives, of a module's top level, in a process that ends with it."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the server that is forked from, when it starts
    with ProcessPoolExecutor(1, mp_context=_forks(), max_tasks_per_child=1) as pool:
        return pool.submit(work, *args).result()


def train(file: Path, run: Path) -> dict[str, Any]:
    """Train the recipe of a file (one that was stopped goes on), its output in a log beside the run: what it cost, without imports.

    A run of several sittings does not say its seconds: those of a sitting that was killed are not known.
    """
    log = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    import torch

    import twinview

    torch.set_num_threads(1)
    before, started = time.process_time(), time.monotonic()
    twinview.train(file, run=run, resume="auto")
    spent = {"cpu_seconds": round(time.process_time() - before, 1), "seconds": round(time.monotonic() - started, 1)}
    if len(json.loads((run / "manifest.json").read_text())["sittings"]) > 1:
        spent = {}
    return {**spent, "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
