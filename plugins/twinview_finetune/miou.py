"""mIoU of a trained segmentation head."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from attrs import field
from attrs.validators import gt
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.branch import Branches
from twinview.errors import DataError
from twinview.hooks import hookimpl, part
from twinview.ops.checks import pixels
from twinview.ops.confusion import Confusion
from twinview.values import DataFactory, Dims, Features, Size, Traits
from twinview_finetune.segmentation import NONE, truth_of


@part
class MIoU:
    """Mean intersection over union, over all labeled pixels of a set, of the head of a loss: finetune.fcn, finetune.upernet."""

    val: str | list[str]  # shards with label maps
    size: tuple[int, int] = field(validator=pixels)  # height, width of the whole image in pixels
    classes: int = field(validator=gt(0))  # of the label maps, those to ignore left out
    ignore: list[int] = field(factory=lambda: [255])  # labels that are no class
    reduce_zero: bool = False  # label 0 is no class, and n is class n - 1 (ADE20K)
    loss: str = "finetune.fcn"  # the loss, by its name in the recipe
    window: tuple[int, int] | None = None  # height, width of the part that is seen at once, moved over the image; left out: all of it
    move: tuple[int, int] | None = None  # pixels that the window is moved by; left out: two thirds of it
    align_corners: bool = False  # of the upsampling: true for FCN's protocols
    images: int = field(default=8, validator=gt(0))  # that the encoder sees at once
    per_class: bool = False  # IoU of each class too: miou/class3

    @hookimpl
    def traits(self) -> Traits:
        """`miou/miou` and `miou/accuracy`."""
        own = [f"miou/class{n}" for n in range(self.classes)] if self.per_class else []
        return Traits(scores=frozenset({"miou/miou", "miou/accuracy", *own}))

    @hookimpl
    def check(self, dims: Dims, data: DataFactory) -> None:
        """Shards that are not there are refused before the training and not after it."""
        data.require(self.val)

    @hookimpl
    def evaluate(self, branches: Branches, data: DataFactory) -> dict[str, float]:
        """Percent of `val`; classes that neither occur nor are given count in no mean.  Raises DataError for labels beyond `classes`."""
        branch = branches.online
        device = next(branch.parameters()).device
        encoder, head = branch.encoder.eval(), branch.find(branch.key(self.loss, "head")).eval()
        confusion = Confusion(self.classes, device)
        for batch in data.plain(self.val, size=self.size, labels=("map",), batch_size=self.images):
            truth = truth_of(batch.labels["map"].to(device), self.classes, self.ignore, self.reduce_zero, "[[evaluate]] finetune.miou")
            with torch.no_grad():
                scores = self.scores(logits_of(encoder, head, self.align_corners), batch.images.to(device))
            known = truth != NONE
            confusion.add(truth[known], scores.argmax(1)[known])
        confusion.gather()
        if not confusion.counts.any():
            raise DataError(f"[[evaluate]] finetune.miou: {self.val} holds no labeled pixel outside ignore = {self.ignore}.")
        found = {"miou/miou": 100 * confusion.miou(), "miou/accuracy": 100 * confusion.accuracy()}
        return found | ({f"miou/class{n}": 100 * float(iou) for n, iou in enumerate(confusion.iou())} if self.per_class else {})

    def scores(self, see: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes, H, W], means over the windows that show a pixel."""
        if self.window is None:
            return see(images)
        height, width = images.shape[-2:]
        total = images.new_zeros(len(images), self.classes, height, width)
        times = images.new_zeros(height, width)
        for y0, x0, y1, x1 in windows((height, width), self.window, self.move or (self.window[0] * 2 // 3, self.window[1] * 2 // 3)):
            total[..., y0:y1, x0:x1] += see(images[..., y0:y1, x0:x1])
            times[y0:y1, x0:x1] += 1
        return total / times


def logits_of(encoder: nn.Module, head: nn.Module, align_corners: bool) -> Callable[[Tensor], Tensor]:
    """Images [B, C, H, W] -> logits [B, classes, H, W]."""
    levels = cast(tuple[str, ...], head.levels)

    def see(images: Tensor) -> Tensor:
        features: Features = encoder(images)
        found: Tensor = head([features.at(level) for level in levels])
        return F.interpolate(found.float(), images.shape[-2:], mode="bilinear", align_corners=align_corners)

    return see


def windows(size: Size, window: Size, move: Size) -> Iterator[tuple[int, int, int, int]]:
    """y0 x0 y1 x1 of windows that cover an image; the last of a row and of a column end at its border (mmsegmentation)."""
    places = []
    for side, wanted, step in zip(size, window, move):
        seen = min(wanted, side)
        count = max(side - seen + step - 1, 0) // step + 1
        places.append([(min(i * step, side - seen), seen) for i in range(count)])
    for y, h in places[0]:
        for x, w in places[1]:
            yield y, x, y + h, x + w
