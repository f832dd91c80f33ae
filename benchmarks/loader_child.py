"""A data worker of another checkout for `loader_speed.py`: a process of its own, which is told what to make and says how long it took.

Its first line is a recipe for each contestant, as JSON; each further line is a contestant, an epoch and the places of a batch.  It answers with
seconds of its own CPU time.
"""
from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from twinview.assembly import assemble
from twinview.data.dataset.open import open_shards
from twinview.data.loading.views import ViewDataset
from twinview.recipe import read


def worker(table: dict[str, Any]) -> ViewDataset:
    """The data worker of a recipe, in this process."""
    made = read(table)
    assembly, shards = assemble(made), open_shards(made.data.shards)
    return ViewDataset(made, assembly.dims(assembly.encoder(), len(shards), shards.classes), shards)


def main() -> None:
    torch.set_num_threads(1)
    views = {name: worker(table) for name, table in json.loads(sys.stdin.readline()).items()}
    for line in sys.stdin:
        name, epoch, places = json.loads(line)
        start = time.process_time()
        views[name].collate([(epoch, i) for i in places])
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
