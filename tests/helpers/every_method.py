"""A small recipe of every method, a process that is killed while it trains one, and two ranks that train them all: for test_every_method.py."""
from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from twinview.engine.distributed.launch import launch
from twinview.engine.train import train
from twinview.recipe import from_table

STEPS, SAVED = 6, 4  # the steps of a run of two epochs, and one with a checkpoint in the middle of the second
CROPS = {"use": "byol.crops", "size": 32}
ONE_VIEW, ONE_WAY = {**CROPS, "views": 1}, {**CROPS, "pairs": "one_way"}
LARGER = {**CROPS, "size": 64}
WHOLE = {"use": "densesiam.crop_and_whole", "size": [32, 32]}
SAMPLED = {"use": "densesiam.grid_sample"}
NONE = {"momentum": 0.0}
AFTER = {"momentum": 0.9, "schedule": "constant"}
BEFORE = {**AFTER, "update": "before_forward"}
VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 32, "depth": 1, "heads": 2, "positions": "sine_row", "init": "mae"}
FINE = {"use": "timm.encoder", "name": "test_resnet"}
METHODS: dict[str, dict[str, Any]] = {  # name -> the tables in which it differs from the others
    "simclr": {"views": CROPS, "target": NONE, "run": {"views_together": True}, "loss": [{"use": "simclr.image", "channels": 4, "hidden": 8}]},
    "moco": {
        "views": ONE_WAY, "target": BEFORE, "run": {"accumulation": 2},
        "loss": [{"use": "moco.image", "projector": "linear", "channels": 4, "queue": 8, "temperature": 0.07}],
    },
    "moco_v2": {"views": ONE_WAY, "target": BEFORE, "loss": [{"use": "moco.image", "channels": 4, "queue": 8}]},
    "moco_v3": {"views": CROPS, "target": BEFORE, "loss": [{"use": "moco_v3.image", "channels": 4, "hidden": 8}]},
    "byol": {"views": CROPS, "target": AFTER, "loss": [{"use": "byol.image", "channels": 4, "hidden": 8}]},
    "simsiam": {"views": CROPS, "target": NONE, "loss": [{"use": "simsiam.image", "channels": 8, "predictor_hidden": 4}]},
    "instdist": {"views": ONE_VIEW, "target": NONE, "loss": [{"use": "instdist.image", "channels": 4, "negatives": 8}]},
    "swav": {
        "views": {"use": "swav.multi_crop", "size": 64, "local": 2}, "target": NONE, "run": {"views_together": True},
        "loss": [{"use": "swav.prototypes", "hidden": 16, "channels": 8, "prototypes": 6, "queue": 8, "queue_start": 1, "frozen": 1}],
    },
    "mae": {
        "views": ONE_VIEW, "masks": {"use": "masks.random", "ratio": 0.75}, "target": NONE, "encoder": {**VIT, "positions": "sine_column"},
        "loss": [{"use": "mae.pixels", "width": 16, "depth": 1, "attention_heads": 4}],
    },
    "densecl": {
        "views": {"use": "siameseim.crops", "size": 64, "scale": [0.3, 1.0]}, "align": {"use": "densecl.correspondence"}, "target": BEFORE,
        "loss": [{"use": "moco.image", "channels": 4, "queue": 8}, {"use": "densecl.dense", "channels": 8, "queue": 8}],
    },
    "pixpro": {"views": LARGER, "target": BEFORE, "loss": [{"use": "pixpro.pixels", "hidden": 16, "channels": 8}]},
    "resim": {"views": {"use": "resim.crops", "size": 64}, "target": BEFORE, "loss": [{"use": "resim.windows", "channels": 8, "ranks": "together"}]},
    "detco": {
        "views": {"use": "detco.global_and_patches", "size": 64, "patch_size": 32}, "target": BEFORE, "run": {"views_together": True},
        "loss": [{"use": "detco.levels", "hidden": 16, "channels": 8, "queue": 8}],
    },
    "multisiam": {
        "views": {"use": "multisiam.iou_crops", "size": 64}, "align": {"use": "multisiam.roi"}, "target": AFTER,
        "loss": [{"use": "byol.image", "channels": 4, "hidden": 8}, {"use": "multisiam.clusters", "channels": 8, "hidden": 16}],
    },
    "densesiam": {
        "views": LARGER, "align": {**SAMPLED, "grid": 4}, "target": NONE,
        "loss": [
            {"use": "simsiam.image", "channels": 8, "predictor_hidden": 4},
            {"use": "densesiam.pixel", "channels": 8, "predictor_hidden": 4},
            {"use": "densesiam.region", "regions": 4, "hidden": 8},
        ],
    },
    "densesiam_segments": {
        "views": WHOLE, "align": SAMPLED, "target": NONE, "encoder": FINE, "head": [{"use": "densesiam.projector", "name": "clusters", "clusters": 4}],
        "loss": [
            {"use": "densesiam.pixel", "head": "clusters", "similarity": "cross_entropy", "predictor_hidden": 4, "auxiliary": 6},
            {"use": "densesiam.segment", "head": "clusters"},
            {"use": "densesiam.region", "head": "clusters", "weight": 0.1},
        ],
    },
    "siameseim": {
        "views": {"use": "siameseim.crops", "size": 32}, "masks": {"use": "siameseim.blocks"}, "target": BEFORE, "encoder": {**VIT, "final_norm": False},
        "align": {"use": "siameseim.relative", "depth": 1, "attention_heads": 2},
        "loss": [{"use": "siameseim.dense", "channels": 32, "projector_depth": 1, "attention_heads": 2, "negative_weight": 0.4}],
    },
    "iic": {
        "views": {"use": "iic.pair", "size": 32, "zoom": 0.6}, "align": {**SAMPLED, "points": "online"}, "target": NONE,
        "encoder": {"use": "iic.segmentation_net", "stem": [8], "body": [8], "dilated": [8]},
        "loss": [
            {"use": "iic.mutual_information", "name": "over", "clusters": 6, "displacement": 1, "period": 2},
            {"use": "iic.mutual_information", "clusters": 3, "sub_heads": 2, "displacement": 1, "period": 2, "turn": 1},
        ],
    },
    "picie": {
        "views": WHOLE, "align": SAMPLED, "target": NONE, "encoder": FINE, "head": [{"use": "picie.centroids", "name": "clusters", "clusters": 3}],
        "loss": [{"use": "picie.clusters", "head": "clusters", "clusters": 3, "auxiliary": 4, "initial": 8, "iterations": 3}],
    },
    "deepcluster": {  # without dropout, whose draws are a rank's own
        "views": ONE_VIEW, "target": NONE,
        "loss": [{"use": "deepcluster.images", "clusters": 3, "components": 4, "hidden": [8], "dropout": 0.0, "iterations": 5, "size": [32, 32]}],
    },
    "deepcluster_cells": {
        "views": ONE_VIEW, "target": NONE, "encoder": FINE, "head": [{"use": "deepcluster.classifier", "name": "clusters", "clusters": 3}],
        "loss": [{"use": "deepcluster.cells", "head": "clusters", "clusters": 3, "initial": 8, "iterations": 3}],
    },
    "supervised": {"views": ONE_VIEW, "target": NONE, "loss": [{"use": "supervised.classes"}]},
    "random": {"views": ONE_VIEW, "target": NONE, "loss": [{"use": "supervised.nothing"}]},
}  # fmt: skip


def table(name: str, shards: str, workers: int = 0, precision: str = "fp32") -> dict[str, Any]:
    """A recipe of two epochs of twelve images."""
    own = METHODS[name]
    run = {"steps": STEPS, "batch_size": 4, "precision": precision, "device": "cpu", "log_every": 1, "checkpoint_every": SAVED, "keep": 5}
    return {
        "encoder": {**FINE, "cells": "c4"},
        **own,
        "augment": {"use": "byol.photometry"},
        "data": {"shards": shards, "workers": workers},
        "optimizer": {"use": "sgd", "lr": 0.002, "weight_decay": 0.0},  # small: last bits grow from step to step
        "schedule": {"use": "constant"},
        "run": {**run, **own.get("run", {})},
    }


def train_until_killed(name: str, shards: str, folder: Path) -> None:
    """Two data workers; killed with them, once the step behind the checkpoint is logged.  The process must lead its group."""

    def kill(row: dict[str, Any]) -> None:
        if row["step"] > SAVED:
            os.killpg(0, signal.SIGKILL)

    train(from_table(table(name, shards, workers=2)), folder, on_progress=kill)


def train_all(shards: str, folder: Path) -> None:
    """The first steps of each on two ranks, which share the optimizer's memory and gradients, into FOLDER/NAME."""

    def first(name: str) -> dict[str, Any]:
        made = table(name, shards)
        stage = 1 if "accumulation" in made["run"] else 2  # 2 sums micro-batches in another order
        return {**made, "run": {**made["run"], "steps": SAVED}, "deepspeed": {"zero_optimization": {"stage": stage}}}

    launch(2, lambda: [train(from_table(first(name)), folder / name).step for name in METHODS])
