"""Small recipes of the dense methods, and two ranks that train them: for test_dense_methods.py."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from twinview.engine.distributed.launch import launch
from twinview.engine.train import train
from twinview.recipe import from_table

ONE_WAY = {"use": "siameseim.crops", "size": 64, "scale": [0.3, 1.0]}
MOVED = {"momentum": 0.9, "update": "before_forward"}
METHODS: dict[str, dict[str, Any]] = {
    "pixpro": {"views": {"use": "byol.crops", "size": 64}, "loss": [{"use": "pixpro.pixels", "hidden": 16, "channels": 8}], "target": MOVED},
    "densecl": {"views": ONE_WAY, "align": {"use": "densecl.correspondence"}, "loss": [{"use": "densecl.dense", "channels": 8, "queue": 8}], "target": MOVED},
    "resim": {"views": {"use": "resim.crops", "size": 64}, "loss": [{"use": "resim.windows", "channels": 8, "ranks": "together"}], "target": MOVED},
    "detco": {
        "views": {"use": "detco.global_and_patches", "size": 64, "patch_size": 32},
        "loss": [{"use": "detco.levels", "hidden": 16, "channels": 8, "queue": 8}],
        "target": MOVED,
        "run": {"views_together": True},
    },
    "swav": {
        "views": {"use": "swav.multi_crop", "size": 64, "local": 2},
        "loss": [{"use": "swav.prototypes", "hidden": 16, "channels": 8, "prototypes": 6, "queue": 8, "queue_start": 1, "frozen": 1}],
        "target": {"momentum": 0.0},
        "run": {"views_together": True},
    },
}


def table(name: str, shards: str, workers: int = 0) -> dict[str, Any]:
    """A recipe of six steps, two epochs of twelve images."""
    own = METHODS[name]
    return {
        **{slot: own[slot] for slot in ("views", "align", "loss", "target") if slot in own},
        "augment": {"use": "byol.photometry"},
        "encoder": {"use": "timm.encoder", "name": "test_resnet", "cells": "c4"},
        "data": {"shards": shards, "workers": workers},
        "optimizer": {"use": "sgd", "lr": 0.05},
        "run": {"steps": 6, "batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 1, "checkpoint_every": 2, **own.get("run", {})},
    }


def train_all(folder: Path, shards: str) -> None:
    """Each on two ranks, into FOLDER/NAME."""
    launch(2, lambda: [train(from_table(table(name, shards)), folder / name).step for name in METHODS])
