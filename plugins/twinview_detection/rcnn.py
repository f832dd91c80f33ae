"""Faster R-CNN (Ren et al. 2015) and Mask R-CNN (He et al. 2017) on the encoder, trained with the boxes and masks of the shards."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from attrs import field
from attrs.validators import ge, gt, le, min_len
from torch import Tensor, nn

from twinview.branch import Branch, Head
from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview.values import Dims, Step, Traits
from twinview_detection.objects import Kinds, for_training, targets

TAKES = {"fpn": ("c2", "c3", "c4", "c5"), "c4": ("c4",), "simple": ("cells",)}


@part
class RCNN:
    """torchvision's detector. `neck`: "fpn" on c2 to c5; "c4", regions of c4 through the encoder's own last stage and one more BatchNorm (MoCo's
    configuration); "simple", ViTDet's pyramid from the last map of a plain transformer, with LayerNorm and four convolutions in the box head.

    Objects are COCO annotations (field json, as `twinview shards pack coco` writes it: COCO, LVIS, and what is converted to it), or with
    objects = "maps" the connected pieces of countable classes of label maps (the drawn scenes, CamVid, Cityscapes, BDD100K).
    """

    neck: Literal["fpn", "c4", "simple"] = "fpn"
    objects: Literal["annotations", "maps"] = "annotations"
    classes: list[int] = field(validator=min_len(1))  # ids of categories, or labels of maps, that are detected
    least: int = field(default=16, validator=gt(0))  # pixels of a piece of a label map
    masks: bool = True  # Mask R-CNN; false: Faster R-CNN, boxes alone
    anchor: int = field(default=32, validator=gt(0))  # pixels of the smallest anchors; each of the five levels doubles them
    width: int = field(default=256, validator=gt(0))  # channels of the pyramid
    hidden: int = field(default=1024, validator=gt(0))  # of the box head
    proposals: int = field(default=2000, validator=gt(0))  # regions of an image, before and after their suppression
    samples: int = field(default=512, validator=gt(0))  # of these, that the heads learn from
    detections: int = field(default=100, validator=gt(0))  # of an image, when it is scored; LVIS: 300
    least_score: float = field(default=0.05, validator=[ge(0), le(1)])  # of a detection; LVIS: 0.02

    def __attrs_post_init__(self) -> None:
        if len({*self.classes}) < len(self.classes) or min(self.classes) < 0:
            raise ValueError(f"classes wants different numbers from 0 on, not {self.classes}")

    @hookimpl
    def traits(self) -> Traits:
        """Needs maps, and annotations or label maps."""
        own = "label_maps" if self.objects == "maps" else "objects"
        return Traits(needs=frozenset({own, "cells" if self.neck == "simple" else "levels"}))

    @hookimpl
    def check(self, dims: Dims) -> None:
        """An encoder without the levels of the neck is refused before the training."""
        for level in ("c4", "c5") if self.neck == "c4" else TAKES[self.neck]:
            if level != "cells" and level not in dims.encoder.levels:
                other = "simple" if dims.encoder.patch else "fpn"
                said = f'"{self.neck}" wants {level}, which the encoder does not give'
                raise RecipeError(f'[[loss]] detection.rcnn neck: {said}. Write neck = "{other}".')

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The `detector`."""
        from twinview_detection.detector import Detector

        levels = TAKES[self.neck]
        widths = [dims.width(level) for level in (("c4", "c5") if self.neck == "c4" else levels)]
        kinds = Kinds(maps=self.objects == "maps", numbers=tuple(self.classes), least=self.least)
        return {"detector": Head(Detector(self, widths, len(self.classes), levels, kinds), "online_only")}

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`objectness`, `rpn_box`, `class`, `box`, and with masks `mask`; means over the views."""
        detector: Any = step.branches.online.of(self, "detector")
        found: dict[str, Tensor] = {}
        views = len(step.batch.images)
        for view in range(views):
            features = step.online[view]
            maps = [features.at(level).float() for level in detector.levels]
            objects = for_training(targets(step.batch.labels, f"/{view}", detector.kinds, "[[loss]] detection.rcnn"), maps[0].device)
            size = (int(step.batch.images[view].shape[-2]), int(step.batch.images[view].shape[-1]))
            with torch.autocast(maps[0].device.type, enabled=False):
                losses = detector(maps, size, objects, last_stage(step.branches.online, self.neck))
            for name, value in losses.items():
                found[NAMES[name]] = found.get(NAMES[name], 0.0) + value / views
        return found


NAMES = {"loss_objectness": "objectness", "loss_rpn_box_reg": "rpn_box", "loss_classifier": "class", "loss_box_reg": "box", "loss_mask": "mask"}


def last_stage(branch: Branch, neck: str) -> nn.Module | None:
    """The encoder's stage that C4 applies to regions.  Raises RecipeError for an encoder that has none."""
    if neck != "c4":
        return None
    stages = getattr(branch.encoder, "stages", None)
    if not stages:
        raise RecipeError('[[loss]] detection.rcnn neck: "c4" wants a ResNet with stages, such as torchvision.resnet. Write neck = "fpn".')
    return cast(nn.Module, stages[-1])
