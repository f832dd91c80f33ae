"""Every part that comes with twinview passes the checks that everyone's part has to pass.

The quick checks, but for the run that is broken off, which each method's own tests have; `--conformance whole` makes all of them, for an hour.
"""
from __future__ import annotations

from typing import Any

import pytest

from twinview.testing import Setting, parts_of
from twinview.testing.conform import checks_of, failures_of
from twinview.testing.trial import Trial

METHODS = (
    *("byol", "deepcluster", "densecl", "densesiam", "detco", "detection", "finetune", "iic", "instdist", "mae", "masks", "moco"),
    *("moco_v3", "multisiam", "picie", "pixpro", "probes", "resim", "siameseim", "signals", "simclr", "simsiam", "supervised", "swav", "timm", "tiny", "torchvision"),
)
CROPS = {"views": {"use": "byol.crops", "size": 64}}
NARROW = {"hidden": 16, "channels": 8}
GRID = {"use": "densesiam.grid_sample"}
VAL = {"val": "{shards}", "size": [32, 32]}
ON_CELLS = {**VAL, "levels": ["cells"], "images": 12, "cells": 8}
TRUNK = {"encoder": {"use": "torchvision.resnet", "name": "resnet18"}}  # of which there are levels c2 to c5
FCN = {"use": "finetune.fcn", "classes": 3, "protocol": "A", "on": "cells", "width": 8}
RCNN = {"use": "detection.rcnn", "objects": "maps", "classes": [0, 1], "least": 4, "anchor": 4, "width": 8, "hidden": 8, "proposals": 8, "samples": 8}
DETECTS = {**TRUNK, "views": {"use": "finetune.scaled_crops", "size": [64, 64], "base": [64, 64], "scale": [1.0, 1.0]}, "target": {"momentum": 0.0}}
OPTIONS: dict[str, dict[str, Any]] = {  # small, where defaults are those of ImageNet
    "byol.crops": {"size": 32}, "byol.image": NARROW,
    "deepcluster.alexnet": {"width": 0.1}, "deepcluster.classifier": {"clusters": 3}, "deepcluster.images": {"clusters": 3, "size": [32, 32]},
    "deepcluster.cells": {"clusters": 3, "initial": 8, "iterations": 2}, "densecl.dense": {"queue": 16, "channels": 8},
    "densesiam.crop_and_whole": {"size": [32, 32]}, "densesiam.pixel": {"channels": 16, "predictor_hidden": 8}, "densesiam.projector": {"clusters": 8},
    "densesiam.region": {"regions": 3}, "densesiam.segment": {"clusters": 3},
    "detco.global_and_patches": {"size": 32, "patch_size": 16}, "detco.levels": {"queue": 16, "channels": 8},
    "detection.rcnn": {key: value for key, value in RCNN.items() if key != "use"}, "detection.ap": {**VAL, "size": [64, 64]},
    "finetune.fcn": {key: value for key, value in FCN.items() if key != "use"},
    "finetune.upernet": {"classes": 3, "width": 8, "auxiliary_width": 8, "dropout": 0.0},
    "finetune.layers": {"blocks": 2}, "finetune.scaled_crops": {"size": [32, 32], "base": [32, 32]},
    "finetune.accuracy": VAL, "finetune.miou": {**VAL, "classes": 3},
    "probes.cells": {**ON_CELLS, "k": 3}, "probes.cluster": {**ON_CELLS, "classes": 3}, "probes.fewshot": {**VAL, "per_class": 3},
    "probes.knn": {**VAL, "k": 3}, "probes.linear": {**VAL, "steps": 3, "batch": 8}, "probes.online": {"memory": 16, "k": 3},
    "probes.robustness": VAL, "probes.segment": {**ON_CELLS, "steps": 3, "batch": 8},
    "signals.rankme": VAL, "signals.lidar": {**VAL, "crops": 3}, "signals.alphareq": {**VAL, "first": 2, "last": 6}, "signals.uniformity": VAL,
    "signals.occupancy": {**VAL, "clusters": 3},
    "iic.pair": {"size": 32}, "iic.segmentation_net": {"stem": [8], "body": [16], "dilated": [16]},
    "iic.clusters": {"clusters": 3}, "iic.mutual_information": {"clusters": 3, "displacement": 1, "grid": "cells"},
    "instdist.image": {"channels": 8, "negatives": 8}, "mae.pixels": {"width": 16, "depth": 1, "attention_heads": 2},
    "moco.image": {"queue": 16, "channels": 8}, "moco_v3.image": NARROW,
    "multisiam.iou_crops": {"size": 32}, "multisiam.clusters": {**NARROW, "clusters": 2, "iterations": 2},
    "picie.clusters": {"clusters": 3, "initial": 8, "iterations": 2}, "picie.centroids": {"clusters": 3},
    "pixpro.pixels": NARROW, "pixpro.instance": NARROW, "resim.crops": {"size": 64}, "resim.windows": {"channels": 8},
    "siameseim.crops": {"size": 32}, "siameseim.dense": {"channels": 16, "attention_heads": 2, "projector_depth": 1},
    "siameseim.relative": {"depth": 1, "attention_heads": 2}, "siameseim.blocks": {"smallest": 2},
    "simclr.image": {"channels": 8}, "simsiam.image": {"channels": 16, "predictor_hidden": 8},
    "swav.multi_crop": {"size": 32, "local": 2}, "swav.prototypes": {"hidden": 16, "channels": 8, "prototypes": 8},
    "timm.encoder": {"name": "vit_tiny_patch16_224", "patch": 8, "width": 32, "depth": 2, "heads": 2, "img_size": 32},
    "torchvision.resnet": {"name": "resnet18", "stride": 16},
}
RECIPES: dict[str, dict[str, Any]] = {  # what a part was made for
    "finetune.layers": {"encoder": {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 32, "depth": 2, "heads": 2, "img_size": 32}},
    "densesiam.projector": {"loss": [{"use": "densesiam.segment", "head": "densesiam.projector"}]},
    "picie.centroids": {"loss": [{"use": "picie.clusters", "head": "picie.centroids", "clusters": 3, "initial": 8, "iterations": 2}], "align": GRID},
    "iic.clusters": {
        "loss": [{"use": "iic.mutual_information", "head": "iic.clusters", "displacement": 1, "grid": "cells"}], "align": GRID,
    },
    "deepcluster.classifier": {
        "loss": [{"use": "deepcluster.cells", "head": "deepcluster.classifier", "clusters": 3, "initial": 8, "iterations": 2}],
    },
    "resim.windows": CROPS, "deepcluster.alexnet": CROPS, "finetune.upernet": {**TRUNK, **CROPS},
    "detection.rcnn": DETECTS, "detection.ap": {**DETECTS, "loss": [RCNN]}, "finetune.accuracy": {"loss": [{"use": "finetune.classes"}]}, "finetune.scaled_crops": {"loss": [{"use": "finetune.classes"}]},
    "finetune.miou": {"loss": [FCN]},
}
SKIP: dict[str, dict[str, str]] = {  # what does not hold, on purpose
    "multisiam.none": {"places": "it aligns nothing: the floor of an ablation"},
    "densecl.correspondence": {"places": "it matches cells by their features, not by their places"},
    "instdist.image": {"micro-batches": "the constant Z of eq. 7 is estimated once, from the first batch of a run, as released"},
    "detection.rcnn": {
        "repeats": "torchvision draws the regions that the heads learn from with torch's global generator, whose state is in every checkpoint",
        "order": "those draws fall on other images then",
        "several ranks": "and are other draws on each rank",
    },
    "supervised.nothing": {"gradients": "it trains nothing: the floor of a table"},
}
PARTS = [part for method in METHODS for part in parts_of(method)]


def trial_of(part: str, extent: Any = "quick") -> Trial:
    return Trial(part, OPTIONS.get(part, {}), Setting(extent=extent, recipe=RECIPES.get(part, {}), skip=SKIP.get(part, {})))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_keeps_what_it_promises(part: str, request: pytest.FixtureRequest) -> None:
    extent = request.config.getoption("--conformance")
    trial = trial_of(part, extent)
    found = [failure for check in checks_of(trial.subject) if extent == "whole" or check.name != "resumes" for failure in failures_of(trial, check)]
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("part", ["tiny.encoder", "moco.image"])
def test_all_checks_of_two_parts(part: str) -> None:
    """Two ranks, ZeRO stages, a new process, torch.compile: of one encoder and one loss with a queue."""
    trial = trial_of(part, "whole")
    found = [failure for check in checks_of(trial.subject) if check.extent == "whole" for failure in failures_of(trial, check)]
    assert not found, "\n".join(map(str, found))
