"""What is compared: for each task one encoder, one budget, one set of views, and the methods as the tables that a recipe gains by them.

A further method joins by one entry in the dictionary of its task.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

Table = dict[str, Any]
KEPT = 6  # checkpoints of a run, of which `--curve` shows the scores


@attrs.frozen(kw_only=True, eq=False)
class Task:
    """Images, encoder and budget that all rows of one table share."""

    name: str
    title: str  # of its figure
    kind: Literal["classes", "maps"]
    train: tuple[str, ...]  # sets of shards that are trained on, without labels
    bank: str  # set that the probes learn from; its other images are dev, on which settings are chosen
    val: str  # set that is reported on
    size: tuple[int, int]  # height, width that the probes see
    on: tuple[str, ...] = ("pooled",)  # features, put behind one another
    segments_on: str = ""  # of a task whose runs are scored by their own clusters: the map that these are made of
    base: Table  # the recipe without method, data and seed
    methods: Mapping[str, Table]

    def recipe(self, method: str, seed: int, shards: Path, overrides: Mapping[str, Any] | None = None) -> Table:
        """The whole recipe of one run.  `overrides`: dotted keys, as on the command line."""
        made = merged(self.base, self.methods[method])
        made = merged(made, {"data": {"shards": [str(shards / name) for name in self.train], "workers": 0}, "run": {"seed": seed}})
        made |= {"evaluate": [{**table, "val": str(shards / table["val"])} for table in made["evaluate"]]} if "evaluate" in made else {}
        for key, value in (overrides or {}).items():
            *path, last = key.split(".")
            inside: Table = {last: value}
            for word in reversed(path):
                inside = {word: inside}
            made = merged(made, inside)
        sixth = max(1, made["run"]["steps"] // KEPT)
        return {**made, "run": {"checkpoint_every": sixth, "keep": KEPT + 1, **made["run"]}}


def merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> Table:
    """Tables of `a` with those of `b` in them; lists, values and tables that `use` something else stand in for those of `a`."""

    def together(x: Any, y: Any) -> bool:
        return isinstance(x, Mapping) and isinstance(y, Mapping) and y.get("use", x.get("use")) == x.get("use")

    return {**a, **b, **{key: merged(a[key], b[key]) for key in a.keys() & b.keys() if together(a[key], b[key])}}


PHOTOMETRY = {"use": "byol.photometry", "blur": [0.0, 0.0], "solarize": [0.0, 0.0]}  # BYOL's colors; 32 pixels bear no blur
IMAGE = {"hidden": 512, "channels": 128}  # heads of a narrow network
STREET = {**PHOTOMETRY, "hue": 0.05, "grey": 0.1}


def byol(weight: float = 1.0) -> Table:
    """BYOL's loss between whole images."""
    return {"use": "byol.image", **IMAGE, "weight": weight}


def clusters(**options: Any) -> Table:
    """MultiSiam's dense loss with 1 - lambda = 0.7."""
    return {"use": "multisiam.clusters", **IMAGE, "weight": 0.7, **options}


ROI = {"use": "multisiam.roi"}
FAST: Table = {"momentum": 0.98}  # of the target; a run of some hundred steps leaves a slower one at its random start
FASTER: Table = {"momentum": 0.95}  # small batches
CROPS = {"use": "byol.crops", "size": 32, "scale": [0.2, 1.0]}
CELLS = 6 * 6  # of c4 for crops of 96 pixels
IOU = {"use": "multisiam.iou_crops", "size": 96, "min_iou": 0.5, "scale": [0.15, 0.8]}

RESNET: dict[str, Table] = {
    "byol": {"loss": [byol()], "target": FAST},
    "simsiam": {"loss": [{"use": "simsiam.image", "channels": 512, "predictor_hidden": 128}], "target": {"momentum": 0.0}},
    "simclr": {
        "loss": [{"use": "simclr.image", "layers": 2, "temperature": 0.2}],
        "target": {"momentum": 0.0},
        "run": {"views_together": True},
    },
    "moco_v2": {
        "views": {"pairs": "one_way"},
        "loss": [{"use": "moco.image", "queue": 4096}],
        "target": {**FAST, "schedule": "constant", "update": "before_forward"},
    },
    "moco_v3": {
        "loss": [{"use": "moco_v3.image", "hidden": 512, "channels": 128, "temperature": 0.2}],
        "target": {**FAST, "update": "before_forward"},
    },
}
VIT: dict[str, Table] = {
    "siameseim": {
        "views": {"use": "siameseim.crops", "size": 32, "scale": [0.3, 1.0]},
        "masks": {"use": "siameseim.blocks", "count": 10},
        "align": {"use": "siameseim.relative", "depth": 2, "attention_heads": 4},
        "loss": [{"use": "siameseim.dense", "channels": 128, "attention_heads": 4, "negative_weight": 0.12}],
        "target": {"momentum": 0.99, "update": "before_forward"},
    },
    "mae": {
        "views": {"use": "byol.crops", "views": 1, "size": 32, "scale": [0.3, 1.0]},
        "masks": {"use": "masks.random", "ratio": 0.75},
        "encoder": {"positions": "sine_column", "final_norm": True},
        "loss": [{"use": "mae.pixels", "width": 64, "depth": 2, "attention_heads": 4}],
        "target": {"momentum": 0.0},
    },
    "moco_v3": {
        "loss": [
            {"use": "moco_v3.image", "hidden": 512, "channels": 128, "projector_layers": 3, "predictor_norm": True, "temperature": 0.2},
        ],
        "target": {**FAST, "update": "before_forward"},
    },
    "byol": {"loss": [byol()], "target": FAST},
}
RESNET["byol_4800"] = merged(RESNET["byol"], {"run": {"steps": 4800}})  # eight times the lesson
VIT["mae_siameseim"] = {  # one masked view says its own hidden pixels and another view's features, as mixed/mae_siameseim
    **VIT["siameseim"],
    "loss": [*VIT["siameseim"]["loss"], *VIT["mae"]["loss"]],
}
VIT |= {f"{name}_6000": merged(VIT[name], {"run": {"steps": 6000}}) for name in ("siameseim", "mae")}  # three times the lesson
DENSECL: Table = {
    "align": {"use": "densecl.correspondence"},
    "loss": [{"use": "moco.image", "weight": 0.5, "queue": 512}, {"use": "densecl.dense", "weight": 0.5, "queue": 512}],
}
STREETS: dict[str, Table] = {
    "byol": {"loss": [byol()], "target": FASTER},
    "simsiam": {"loss": [{"use": "simsiam.image", "channels": 512, "predictor_hidden": 128}], "target": {"momentum": 0.0}},
    "multisiam": {"align": ROI, "loss": [byol(0.3), clusters()], "target": FASTER},
    # MultiSiam less one of its pieces each: pairs that overlap as they come, no alignment, cell to cell in place of clusters
    "multisiam_any_pair": {"views": {**IOU, "min_iou": 0.0}, "align": ROI, "loss": [byol(0.3), clusters()], "target": FASTER},
    "multisiam_unaligned": {"align": {"use": "multisiam.none"}, "loss": [byol(0.3), clusters()], "target": FASTER},
    "multisiam_cells": {"align": ROI, "loss": [byol(0.3), clusters(clusters=CELLS, iterations=0)], "target": FASTER},
    "byol_any_pair": {"views": {**IOU, "min_iou": 0.0}, "loss": [byol()], "target": FASTER},
    "simclr": RESNET["simclr"],
    "moco_v2": {  # both ways, as all methods here; published one way
        "loss": [{"use": "moco.image", "queue": 512}],
        "target": {**FASTER, "schedule": "constant", "update": "before_forward"},
    },
    "densecl": {  # both ways, as all methods here; published one way
        **DENSECL,
        "target": {**FASTER, "schedule": "constant", "update": "before_forward"},
    },
    "densecl_crops": {  # one way, on crops that overlap as they come: what lightly's has
        "views": {"use": "byol.crops", "size": 96, "scale": [0.15, 1.0], "pairs": "one_way"},
        **DENSECL,
        "target": {**FASTER, "update": "before_forward"},
    },
    "moco_v3": merged(RESNET["moco_v3"], {"target": FASTER}),
    "pixpro": {"loss": [{"use": "pixpro.pixels", **IMAGE}], "target": {**FASTER, "update": "before_forward"}},
    "resim": {  # pairs that overlap as its sliding windows need
        "views": {"use": "resim.crops", "size": 96, "scale": [0.15, 0.8]},
        "loss": [{"use": "moco.image", "queue": 512}, {"use": "resim.windows", "channels": 128}],
        "target": {**FASTER, "schedule": "constant", "update": "before_forward"},
    },
    "detco": {  # two whole crops and nine patches of each
        "views": {"use": "detco.global_and_patches", "size": 96, "patch_size": 32, "scale": [0.15, 0.8]},
        "loss": [{"use": "detco.levels", "hidden": 256, "queue": 512}],
        "target": {**FASTER, "schedule": "constant", "update": "before_forward"},
        "run": {"views_together": True},
    },
}
STREETS |= {f"{name}_2400": merged(STREETS[name], {"run": {"steps": 2400}}) for name in ("multisiam", "byol")}  # three times the lesson
# with the momentum as published; that of lightly's example ends at 1
STREETS["densecl_crops_constant"] = merged(STREETS["densecl_crops"], {"target": {"schedule": "constant"}})
STREETS["densecl_crops_cell"] = {  # and with one cell of each image in the queue, as lightly's holds cells
    **STREETS["densecl_crops"],
    "loss": [DENSECL["loss"][0], {**DENSECL["loss"][1], "keys": "cell"}],
}
QUEUED = ("moco_v2", "densecl", "resim", "detco")  # a queue is of steps past, whose keys a fast target has left behind (fifth report)
STREETS |= {f"{name}_slow": merged(STREETS[name], {"target": {"momentum": 0.99}}) for name in QUEUED}
STREET_CROPS: Table = {"size": 96, "scale": [0.15, 0.8]}
STREETS_VIT: dict[str, Table] = {
    "siameseim": merged(VIT["siameseim"], {"views": STREET_CROPS, "masks": {"count": 86}, "target": FASTER}),  # 86 of 144 cells are hidden
    "mae": merged(VIT["mae"], {"views": STREET_CROPS}),
    "moco_v3": merged(VIT["moco_v3"], {"target": FASTER}),
}
ADAM: Table = {"optimizer": {"use": "adamw", "lr": 3e-4, "weight_decay": 0.0}, "schedule": {"use": "constant", "warmup_share": 0.0}}
MDC: Table = {
    "head": [{"use": "deepcluster.classifier", "name": "clusters", "clusters": 8}],
    "loss": [{"use": "deepcluster.cells", "head": "clusters", "clusters": 8, "initial": 320, "iterations": 10}],
    "target": {"momentum": 0.0},
    **ADAM,
}
PICIE: Table = {
    "align": {"use": "densesiam.grid_sample"},
    "head": [{"use": "picie.centroids", "name": "clusters", "clusters": 8}],
    "loss": [{"use": "picie.clusters", "head": "clusters", "clusters": 8, "initial": 320, "iterations": 10}],
    "target": {"momentum": 0.0},
}
SGD: Table = {"use": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "decay_norm_bias": True}  # of the task
SEGMENTS: dict[str, Table] = {
    "densesiam": {
        "align": {"use": "densesiam.grid_sample"},
        "head": [{"use": "densesiam.projector", "name": "clusters", "clusters": 8}],
        "loss": [
            {"use": "densesiam.pixel", "head": "clusters", "similarity": "cross_entropy", "predictor_hidden": 128, "auxiliary": 64},
            {"use": "densesiam.segment", "head": "clusters"},
            {"use": "densesiam.region", "head": "clusters", "weight": 0.1, "start": 0.5},
        ],
        "target": {"momentum": 0.0},
    },
    # the others with the rates of their own small recipes; published with the same optimizer, Adam, and rates of 1e-4
    "picie": {**PICIE, **ADAM},
    # with the optimizer of the task, DenseSiam's: the best of three on dev (fifth report)
    "picie_sgd": PICIE,
    "mdc": MDC,
    "mdc_six_epochs": {**MDC, "run": {"steps": 768}},  # ends where an epoch ends, before its classifier is drawn anew
    "iic": {
        "align": {"use": "densesiam.grid_sample", "points": "online"},
        "head": [{"use": "iic.clusters", "name": "clusters", "clusters": 8}],
        "loss": [
            {"use": "iic.mutual_information", "name": "over", "clusters": 24, "displacement": 3, "grid": "cells"},
            {"use": "iic.mutual_information", "head": "clusters", "displacement": 3, "grid": "cells"},
        ],
        "target": {"momentum": 0.0},
        **ADAM,
    },
}

SEGMENTS["densesiam_2400"] = merged(SEGMENTS["densesiam"], {"run": {"steps": 2400}})  # three times the lesson

CIFAR_RESNET = Task(
    name="cifar-resnet",
    title="CIFAR-10: ResNet-18 of width 32",
    kind="classes",
    train=("cifar-large-train",),
    bank="cifar-large-train",
    val="cifar-large-val",
    size=(32, 32),
    base={
        "views": CROPS,
        "augment": PHOTOMETRY,
        "encoder": {"use": "torchvision.resnet", "name": "resnet18", "width": 32},
        "optimizer": {"use": "adamw", "lr": 2e-3, "weight_decay": 0.05},
        "schedule": {"warmup_share": 0.1},
        "run": {"steps": 600, "batch_size": 64, "precision": "bf16", "channels_last": True, "log_every": 50},
    },
    methods=RESNET,
)
CIFAR_VIT = attrs.evolve(
    CIFAR_RESNET,
    name="cifar-vit",
    title="CIFAR-10: ViT of width 128",
    base={
        **CIFAR_RESNET.base,
        "augment": {**PHOTOMETRY, "grey": 0.1},
        "encoder": {
            **{"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 128, "depth": 4, "heads": 4},
            **{"positions": "sine_row", "final_norm": False, "init": "mae"},
        },
        "optimizer": {"use": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "run": {"steps": 2000, "batch_size": 64, "precision": "bf16", "clip_gradients": 1.0, "log_every": 50},
    },
    methods=VIT,
)
STREET_SCENES = Task(
    name="streets",
    title="Street scenes of another place: ResNet-18 of width 16",
    kind="maps",
    train=("facade-train", "camvid-train"),
    bank="facade-train",
    val="facade-val",
    size=(192, 256),
    on=("c3", "c4", "c5"),
    base={
        "views": IOU,
        "augment": STREET,
        "encoder": {"use": "torchvision.resnet", "name": "resnet18", "width": 16, "cells": "c4"},
        "optimizer": {"use": "adamw", "lr": 2e-3, "weight_decay": 0.05},
        "schedule": {"warmup_share": 0.1},
        "run": {"steps": 800, "batch_size": 16, "precision": "bf16", "channels_last": True, "log_every": 50},
    },
    methods=STREETS,
)
STREETS_R18 = attrs.evolve(  # the whole ResNet-18
    STREET_SCENES,
    name="streets-r18",
    title="Street scenes of another place: ResNet-18",
    base=merged(STREET_SCENES.base, {"encoder": {"width": 64}, "run": {"steps": 2400}}),
    methods={"multisiam": STREETS["multisiam"], "simclr": STREETS["simclr"], "resim": STREETS["resim_slow"], "byol": STREETS["byol"]},
)
STREETS_BY_VIT = attrs.evolve(
    STREET_SCENES,
    name="streets-vit",
    title="Street scenes of another place: ViT of width 128",
    on=("cells",),
    base={
        **CIFAR_VIT.base,
        "views": {"use": "byol.crops", **STREET_CROPS},
        "augment": STREET,
        "run": {**CIFAR_VIT.base["run"], "steps": 800, "batch_size": 16},
    },
    methods=STREETS_VIT,
)
SEGMENTATION = attrs.evolve(  # every run scores its own clusters, and k-means on its random start and on raw pixels
    STREET_SCENES,
    name="segments",
    title="Street scenes of another place, segmented without labels",
    segments_on="d2",
    base={
        "views": {"use": "densesiam.crop_and_whole", "size": [96, 128], "scale": [0.5, 1.0]},
        "augment": {
            **{"use": "byol.photometry", "coins": "each", "order": "fixed", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
            **{"blur": [0.0, 0.0], "solarize": [0.0, 0.0]},
        },
        "encoder": {"use": "torchvision.resnet", "name": "resnet18", "width": 32, "decoder": 64, "cells": "d2"},
        "optimizer": SGD,
        "schedule": {"warmup_share": 0.05},
        "run": {"steps": 800, "batch_size": 8, "precision": "bf16", "channels_last": True, "log_every": 50},
        "evaluate": [
            {
                **{"use": "probes.cluster", "head": "clusters", "val": "facade-val", "size": [192, 256], "classes": 8, "ignore": [8, 255]},
                **{"baselines": ["random", "pixels"], "levels": ["c3", "c4", "c5"]},
            },
        ],
    },
    methods=SEGMENTS,
)
TASKS = {task.name: task for task in (CIFAR_RESNET, CIFAR_VIT, STREET_SCENES, STREETS_R18, STREETS_BY_VIT, SEGMENTATION)}
