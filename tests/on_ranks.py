"""One function on two ranks: python on_ranks.py FILE FUNCTION FOLDER.  Writes what rank r gets from `FUNCTION(r)` to FOLDER/r.pt.

Two processes of this machine, gloo, no launcher.  Tests use it through the fixture `two_ranks`.
"""
from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def one(rank: int, function: Callable[[int], Any], folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    torch.save(function(rank), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main(file: str, name: str, folder: str) -> None:
    spec = importlib.util.spec_from_file_location("on_ranks_given", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    start_processes(one, (getattr(module, name), Path(folder)), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(*sys.argv[1:])
