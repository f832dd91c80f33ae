"""Recipes that stress what hooks keep, and their training on several ranks: for test_hook_state.py, and for benchmarks/hook_state.py.

python hook_recipes.py FOLDER RANKS trains each recipe of FOLDER/recipes.json into FOLDER/NAME-RANKS.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from twinview.engine.distributed.launch import launch
from twinview.engine.train import train
from twinview.recipe import from_table

Table = dict[str, Any]
STAGES = (0, 1, 2, 3)


def recipes(
    toy: Table, shards: str, stages: tuple[int, ...] = STAGES, accumulations: tuple[int, ...] = (1, 2), uses: tuple[str, ...] = ("adamw",)
) -> dict[str, Table]:
    """Twelve photographs, three steps an epoch, two epochs; benchmarks/hook_state.py runs more of them."""
    base = {**toy, "data": {"shards": shards, "workers": 0}, "run": {**toy["run"], "steps": 6, "checkpoint_every": 100, "device": "cpu"}}
    deep = {**base, "loss": [{"use": "held.deep"}], "views": {"use": "byol.crops", "views": 1, "size": 32}}
    contrast = {**base, "loss": [{"use": "held.contrast"}], "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.9}}
    writes = {**base, "extra": [{"use": "held.writes"}, {"use": "held.late"}], "optimizer": {"use": "adamw", "lr": 0.05, "weight_decay": 0.1, "clip": 0.01}}
    found: dict[str, Table] = {}
    for stage in stages:
        zero = {"deepspeed": {"zero_optimization": {"stage": stage, **({"stage3_param_persistence_threshold": 10} if stage == 3 else {})}}}
        found |= {f"deep-{use}-{stage}": {**deep, **zero, "optimizer": {"use": use, "lr": 0.05, "weight_decay": 0.01}} for use in uses}
        found[f"writes-{stage}"] = {**writes, **zero}
    for accumulation in accumulations:
        found[f"contrast-{accumulation}"] = {**contrast, "run": {**contrast["run"], "accumulation": accumulation}}
    return found


def train_all(tables: dict[str, Table], folder: Path, ranks: int) -> None:
    """Each recipe into FOLDER/NAME-RANKS, one after another."""
    def work() -> None:
        for name, table in tables.items():
            train(from_table(table), folder / f"{name}-{ranks}")

    launch(ranks, work)


if __name__ == "__main__":
    train_all(json.loads((Path(sys.argv[1]) / "recipes.json").read_text()), Path(sys.argv[1]), int(sys.argv[2]))
