"""Segmentation: every cell learns the cluster that it already fell into."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor
from torch.nn import functional as F

from twinview.branch import Head
from twinview.hooks import hookimpl, part
from twinview.ops import conv_mlp
from twinview.ops.maps import visible_cells
from twinview.ops.means import wide
from twinview.ops.ranks import summed
from twinview.values import Dims, Step, Traits
from twinview_densesiam.projector import refuse_own


@part
class Segment:
    """DenseSiam's segmentation loss: cross-entropy with online pseudo labels, y = argmax sg z of the same view and forward.

    `rebalance` weights a cell by its label's frequency n_y / N (as released), by the inverse N / (K n_y) over the K labels that occur, or not
    at all; the mean is over cells, not over weights.  Counts are those of the view on all ranks.
    """

    head: str = ""  # a shared [[head]] in place of its own projector
    clusters: int = field(default=27, validator=gt(1))  # K, of its own projector
    hidden: int = field(default=0, validator=ge(0))  # width of its own projector's hidden layers; 0: that of the cells
    rebalance: Literal["none", "frequency", "inverse"] = "frequency"

    def __attrs_post_init__(self) -> None:
        if self.head:
            refuse_own(self, "clusters", "hidden")

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells."""
        return Traits(needs=frozenset({"cells", "pairs"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """Its own `projector`, where none is shared."""
        width = dims.width("cells")
        own = {"projector": Head(conv_mlp(width, self.hidden or width, self.clusters, layers=3, last_norm=True))}
        return {} if self.head else own

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`segment`, mean over views.  Notes `segment/entropy` of the labels (1: all clusters as large, 0: one holds all) and `segment/used`."""
        projector = step.head(self.head, "projector") if self.head else step.head(self, "projector")
        losses, occupancy = [], []
        for view in sorted({view for pair in step.pairs for view in pair}):
            logits = step.apply(projector, view, "online")
            loss, counts = segment_loss(logits, visible_cells(step, view, logits), self.rebalance)
            losses.append(loss)
            occupancy.append(counts)
        if step.watch:
            share = F.normalize(torch.stack(occupancy).sum(0), p=1, dim=0)
            step.note("segment/entropy", torch.special.entr(share).sum() / torch.tensor(float(len(share))).log())
            step.note("segment/used", (share > 0).sum())
        return {"segment": torch.stack(losses).mean()}


def segment_loss(logits: Tensor, visible: Tensor, rebalance: str) -> tuple[Tensor, Tensor]:
    """Mean over the `visible` [B, h, w] cells of weight * -log softmax(z)_y for logits z [B, K, h, w], and the labels' counts [K]."""
    with torch.autocast(logits.device.type, enabled=False):
        z = wide(logits)
        labels = z.detach().argmax(1)
        loss = F.cross_entropy(z, labels, reduction="none")
        counts = summed(torch.zeros_like(z[0, :, 0, 0]).index_add_(0, labels.flatten(), visible.flatten().to(z.dtype)))
        total, weight = counts.sum().clamp(min=1), torch.ones_like(counts)
        if rebalance == "frequency":
            weight = counts / total
        elif rebalance == "inverse":
            weight = total / ((counts > 0).sum() * counts.clamp(min=1))
        seen = visible.to(z.dtype)
        return (weight[labels] * loss * seen).sum() / seen.sum().clamp(min=1), counts
