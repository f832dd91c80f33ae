"""Trains each recipe of FOLDER/recipes.json into FOLDER/NAME on two ranks, and prints what the last one raises: python left_out_driver.py FOLDER."""
from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

from twinview.assembly import assemble
from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import quiet_deepspeed
from twinview.engine.train import train
from twinview.errors import TwinviewError
from twinview.recipe import from_table


def main() -> None:
    folder = Path(sys.argv[1])
    tables = json.loads((folder / "recipes.json").read_text())
    quiet_deepspeed("cpu")
    assemble(from_table(next(iter(tables.values()))))  # imports the methods, once for all ranks
    *whole, last = tables
    for name in whole:
        launch(2, partial(train, from_table(tables[name]), folder / name))
    try:
        launch(2, partial(train, from_table(tables[last]), folder / last))
    except TwinviewError as e:
        print(e)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
