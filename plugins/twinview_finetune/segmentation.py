"""Semantic segmentation on the encoder, trained with the label maps of the shards: FCN under two protocols, and UperNet."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from attrs import field
from attrs.validators import and_, ge, gt, lt, max_len, min_len
from torch import Tensor
from torch.nn import functional as F

from twinview.branch import Head
from twinview.errors import DataError, RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops.means import wide
from twinview.values import Dims, Step, Traits
from twinview_finetune.fcn import PROTOCOLS, FCNHead, Shape
from twinview_finetune.upernet import UperNetHead

NONE = -100  # in a target: no class


@part
class Segmentation(ABC):
    """What both share: the labels, and the cross-entropy of logits that are upsampled to them."""

    classes: int = field(validator=gt(0))  # of the label maps, those to ignore left out
    ignore: list[int] = field(factory=lambda: [255])  # labels that are no class
    reduce_zero: bool = False  # label 0 is no class, and n is class n - 1 (ADE20K)

    place: ClassVar[str]
    align_corners: ClassVar[bool]

    @hookimpl
    def check(self, dims: Dims) -> None:
        """Levels that the encoder does not give are refused before the training."""
        for level in self.taken():
            if level != "cells" and level not in dims.encoder.levels:
                there = ", ".join(["cells", *dims.encoder.levels])
                raise RecipeError(f"[[loss]] {self.place}: the encoder gives no map {level!r}. There is: {there}.")

    @abstractmethod
    def taken(self) -> Sequence[str]:
        """The maps that the heads take."""

    def term(self, step: Step, head: str, view: int, levels: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of a head in a view, over labeled pixels; and the share of these that it gets right."""
        logits = wide(step.apply(step.head(self, head), view, "online", on=tuple(levels)))
        truth = self.truth(step.batch.labels[f"map/{view}"].to(logits.device))
        logits = F.interpolate(logits, truth.shape[1:], mode="bilinear", align_corners=self.align_corners)
        known = truth != NONE
        total = F.cross_entropy(logits, truth, ignore_index=NONE, reduction="sum")
        right = ((logits.argmax(1) == truth) & known).sum() / known.sum().clamp(min=1)
        return total / known.sum().clamp(min=1), right

    def truth(self, labels: Tensor) -> Tensor:
        """Classes of label maps, NONE for no class.  Raises DataError for a label that is none of them."""
        return truth_of(labels, self.classes, self.ignore, self.reduce_zero, f"[[loss]] {self.place}")


def truth_of(labels: Tensor, classes: int, ignore: Sequence[int], reduce_zero: bool, place: str) -> Tensor:
    """Label maps [...] -> classes 0 to classes - 1 as int64, NONE for no class.  Raises DataError for a label that is none of them."""
    none = torch.isin(labels, torch.tensor(list(ignore), device=labels.device))
    if reduce_zero:
        none, labels = none | (labels == 0), labels - 1
    found = torch.where(none, NONE, labels.long())
    strange = found[(found >= classes) & (found != NONE)]
    if len(strange):
        label = int(strange[0]) + reduce_zero
        raise DataError(f"{place}: a label map holds {label} with classes = {classes}. Write more classes, or put {label} into ignore.")
    return found


@part
class FCN(Segmentation):
    """FCN on the last map, under one of two protocols whose rows are never to be mixed.

    "A", MoCo's: two 3x3 convolutions of 256 with dilation 6, no auxiliary head; the encoder has stride = 16.  "B", DenseCL's and mmsegmentation's:
    two of 512, joined with the input, dropout 0.1, an auxiliary head on c4 of weight 0.4; the encoder has stride = 8.
    """

    place = "finetune.fcn"
    align_corners = True
    protocol: Literal["A", "B"]  # whose head and training it is: see above
    on: str = "c5"  # the map
    auxiliary: str = "c4"  # the map of B's auxiliary head
    width: int = field(default=0, validator=ge(0))  # of the convolutions; 0: the protocol's

    @property
    def shape(self) -> Shape:
        """Of the head."""
        import attrs

        shape = PROTOCOLS[self.protocol]
        return attrs.evolve(shape, width=self.width or shape.width)

    @hookimpl
    def traits(self) -> Traits:
        """Needs maps and label maps."""
        return Traits(needs=frozenset({"label_maps", *("cells" if level == "cells" else "levels" for level in self.taken())}))

    def taken(self) -> Sequence[str]:
        """The map, and B's other one."""
        return (self.on, self.auxiliary) if self.shape.auxiliary else (self.on,)

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`head`, and B's `auxiliary`."""
        found = {"head": Head(FCNHead(dims.width(self.on), self.classes, self.shape, 2, [self.on]), "online_only")}
        if self.shape.auxiliary:
            small = Shape(width=max(1, self.shape.width // 2), dilation=1, skip=False, dropout=self.shape.dropout, auxiliary=0.0)
            found["auxiliary"] = Head(FCNHead(dims.width(self.auxiliary), self.classes, small, 1, [self.auxiliary]), "online_only")
        return found

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`fcn`, in nats, and B's `auxiliary`, times its weight; notes the share of pixels that are right."""
        views = range(len(step.batch.images))
        main = [self.term(step, "head", view, [self.on]) for view in views]
        step.note("fcn/accuracy", torch.stack([right for _, right in main]))
        found = {"fcn": torch.stack([loss for loss, _ in main]).mean()}
        if self.shape.auxiliary:
            other = [self.term(step, "auxiliary", view, [self.auxiliary])[0] for view in views]
            found["auxiliary"] = self.shape.auxiliary * torch.stack(other).mean()
        return found


@part
class UperNet(Segmentation):
    """UperNet on four maps, with an FCN of weight 0.4 on the third.

    Of a plain vision transformer four blocks, levels = ["b4", "b6", "b8", "b12"] with [encoder] maps = [4, 6, 8, 12], which are brought to strides 4,
    8, 16 and 32; of other encoders c2 to c5.
    """

    place = "finetune.upernet"
    align_corners = False
    levels: list[str] = field(factory=lambda: ["c2", "c3", "c4", "c5"], validator=[min_len(4), max_len(4)])  # four maps, from fine to coarse
    width: int = field(default=512, validator=gt(0))  # 768 for ViT-B (mmsegmentation's MAE)
    auxiliary_width: int = field(default=256, validator=gt(0))  # channels of the auxiliary head
    auxiliary_weight: float = field(default=0.4, validator=ge(0))  # of its loss
    dropout: float = field(default=0.1, validator=and_(ge(0), lt(1)))  # of both heads

    @hookimpl
    def traits(self) -> Traits:
        """Needs maps and label maps."""
        return Traits(needs=frozenset({"label_maps", "levels"}))

    def taken(self) -> Sequence[str]:
        """The four maps."""
        return self.levels

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`head` and `auxiliary`."""
        strides = {dims.encoder.levels[level].stride for level in self.levels}
        widths = [dims.width(level) for level in self.levels]
        head = UperNetHead(widths, self.classes, self.width, len(strides) == 1, self.dropout, self.levels)
        small = Shape(width=self.auxiliary_width, dilation=1, skip=False, dropout=self.dropout, auxiliary=0.0)
        auxiliary = FCNHead(widths[2], self.classes, small, 1, [self.levels[2]])
        return {"head": Head(head, "online_only"), "auxiliary": Head(auxiliary, "online_only")}

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`upernet`, in nats, and `auxiliary`, times its weight; notes the share of pixels that are right."""
        views = range(len(step.batch.images))
        main = [self.term(step, "head", view, self.levels) for view in views]
        other = [self.term(step, "auxiliary", view, [self.levels[2]])[0] for view in views]
        step.note("upernet/accuracy", torch.stack([right for _, right in main]))
        return {"upernet": torch.stack([loss for loss, _ in main]).mean(), "auxiliary": self.auxiliary_weight * torch.stack(other).mean()}
