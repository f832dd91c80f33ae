"""Dense contrast: every cell tells the cell that it corresponds to from the images of earlier batches (DenseCL, eq. 2)."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor

from twinview.branch import Branches
from twinview.hooks import hookimpl, part
from twinview.ops import Queue, check_queue, conv_mlp, info_nce_queue
from twinview.ops.means import weighted_mean
from twinview.values import Dims, Head, Progress, Step, Traits


@part
class Dense:
    """InfoNCE between a cell's query and the key of the cell that the alignment gives it; negatives are keys of other images, one of each.

    The queue takes one key an image and view, the mean of the key view's projected cells, or one of these cells.  Published with
    `densecl.correspondence` beside `moco.image`, each with weight 0.5; any alignment does.
    """

    align: str = ""  # the recipe's alignment by name, for a recipe that has several
    hidden: int = field(default=0, validator=ge(0))  # width of the projector's hidden layer; 0: that of the cells
    channels: int = field(default=128, validator=gt(0))  # width of queries and keys
    queue: int = field(default=65536, validator=gt(0))  # keys of earlier batches, of all ranks together
    temperature: float = field(default=0.2, validator=gt(0))  # of the softmax over cosines
    keys: Literal["mean", "cell"] = "mean"  # what the queue takes of an image: the mean of its cells' keys as published, or one of them

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells, an alignment, and paired views."""
        return Traits(needs=frozenset({"cells", "alignment", "pairs"}))

    @hookimpl
    def aligned_widths(self, dims: Dims) -> tuple[int, ...]:
        """Projections of both branches are aligned."""
        return (self.channels,)

    @hookimpl
    def check(self, dims: Dims) -> None:
        """A queue holds at least a batch and at most an epoch of keys."""
        check_queue(self.queue, dims, "[[loss]] densecl.dense", keys=len({target for _, target in dims.pairs}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The averaged `projector`, two 1x1 convolutions without norm, and the `queue`, kept once."""
        width = dims.width("cells")
        projector = conv_mlp(width, self.hidden or width, self.channels, norm=False)
        return {"projector": Head(projector), "queue": Head(Queue(self.queue, self.channels), "state")}

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`dense`, nats: the mean over cells and ordered pairs; cells that the alignment gives no partner count for nothing."""
        projector, negatives = step.head(self, "projector"), step.branches.online.of(self, "queue").negatives()
        terms = []
        for online, target in step.pairs:
            alignment = step.alignment(online, target, self.align)
            query = alignment.online(step.apply(projector, online, "online"))
            key = alignment.target(step.apply(projector, target, "target"))
            losses = info_nce_queue(as_rows(query), as_rows(key).detach(), negatives, self.temperature)
            terms.append(weighted_mean(losses, alignment.weight.flatten()))
        return {"dense": torch.stack(terms).mean()}

    @hookimpl
    def after_micro_batch(self, branches: Branches, step: Step, progress: Progress) -> None:
        """The mean keys of these images, or one cell's of each, wait for the end of the step."""
        projector, views = step.head(self, "projector"), sorted({target for _, target in step.pairs})
        keys = [self._of_images(step.apply(projector, view, "target").flatten(2), step, progress) for view in views]
        branches.online.of(self, "queue").hold(torch.cat(keys), progress.micro)

    def _of_images(self, cells: Tensor, step: Step, progress: Progress) -> Tensor:
        """[B, channels, h * w] -> [B, channels]; which cell is told by the sample and the step, so that a run that goes on takes the same."""
        if self.keys == "mean":
            return cells.mean(2)
        at = ((step.batch.seeds + progress.step) % cells.shape[2]).to(cells.device)
        return cells[torch.arange(len(cells), device=cells.device), :, at]

    @hookimpl
    def after_step(self, branches: Branches) -> None:
        """Then they take the place of the oldest."""
        branches.online.of(self, "queue").commit()


def as_rows(maps: Tensor) -> Tensor:
    """Maps [B, C, h, w] -> [B*h*w, C], image by image."""
    return maps.flatten(2).mT.flatten(0, 1)
