"""Ranks: python hooks_driver.py FOLDER RANKS.  Trains each recipe of FOLDER/recipes.json into FOLDER/NAME-RANKS, one after another."""
from __future__ import annotations

import json
import sys
from pathlib import Path

from twinview.engine.distributed.launch import launch
from twinview.engine.train import train
from twinview.recipe import from_table


def main() -> None:
    folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
    tables = json.loads((folder / "recipes.json").read_text())

    def work() -> None:
        for name, table in tables.items():
            train(from_table(table), folder / f"{name}-{ranks}")

    launch(ranks, work)


if __name__ == "__main__":
    main()
