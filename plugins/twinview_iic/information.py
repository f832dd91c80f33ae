"""The loss: mutual information between the clusters of two views, for every small displacement."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor
from torch.nn import functional as F

from twinview.branch import Head, ParamRule
from twinview.hooks import hookimpl, part
from twinview.ops.maps import seen_twice
from twinview.ops.means import wide
from twinview.ops.ranks import gather_rows
from twinview.values import Alignment, Dims, Step, Traits
from twinview_iic.clusters import cluster_head

LEAST = 2.2e-16  # that probabilities are clamped at


CLUSTERS = 15  # of a head of its own, unless the recipe says


@part
class MutualInformation:
    """IIC's segmentation loss: minus the mutual information of the clusters of two aligned views, mean over displacements up to T (eq. 3 to 5).

    Gradient reaches both views, which both come from the online branch; the joint distribution is that of all ranks.  A second such loss with more
    clusters and a name of its own is the over-clustering head; with `period = 2` and `turn` 0 and 1 the two take turns by epoch, as published.
    """

    align: str = ""  # the recipe's alignment by name, for a recipe that has several
    head: str = ""  # a shared [[head]] in place of its own
    clusters: int = field(default=CLUSTERS, validator=gt(1))  # K of its own head
    sub_heads: int = field(default=1, validator=ge(1))  # heads of its own, whose losses are averaged
    displacement: int = field(default=10, validator=ge(0))  # T, in places of `grid`: (2T + 1)^2 displacements
    grid: Literal["pixels", "cells"] = "pixels"  # places: of the view, to which probabilities are brought bilinearly; or of the alignment
    marginal_weight: float = field(default=1.0, validator=gt(0))  # lambda; above 1 clusters are pushed to be equally large
    collapsed: bool = False  # one joint distribution of all displacements together, by a normalizer without gradient (the release's other form)
    period: int = field(default=1, validator=ge(1))  # epochs of a round, of which it trains in one
    turn: int = field(default=0, validator=ge(0))  # which, counted from 0; in the others its head has a gradient of zero

    def __attrs_post_init__(self) -> None:
        if self.head and (self.sub_heads > 1 or self.clusters != CLUSTERS):
            raise ValueError("clusters and sub_heads are of its own head; leave them out where head names a shared one")
        if self.turn >= self.period:
            raise ValueError(f"turn counts the epochs of a round from 0, and period = {self.period} has no turn {self.turn}")

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells, an alignment, and paired views."""
        return Traits(needs=frozenset({"cells", "alignment", "pairs"}))

    @hookimpl
    def aligned_widths(self, dims: Dims) -> tuple[int, ...]:
        """Shares of clusters are aligned."""
        return (self._width(dims),)

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """Its own `projector`, where none is shared."""
        head = cluster_head(dims.width("cells"), self._width(dims))
        return {} if self.head else {"projector": Head(head, rule=ParamRule(frozen_until=self.turn))}

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`mutual_information`, from -ln K upwards; notes the information in nats, and the entropy of the clusters' sizes (1: all as large)."""
        key = step.head(self.head or self, "projector")
        if step.progress.epoch % self.period != self.turn:
            return {"mutual_information": step.apply(key, step.pairs[0][0], "online").sum() * 0}  # by the head's pass, where ZeRO 3 has it whole
        found = []
        for i, j in step.pairs:
            alignment = step.alignment(i, j, self.align)
            x1, x2 = self._shares(step, alignment, key, i, j)
            for s in range(self.sub_heads):
                found.append(information(x1[:, s], x2[:, s], self.displacement, self.marginal_weight, self.collapsed))
        step.note("mutual_information/nats", torch.stack([terms.nats for terms in found]).mean())
        step.note("mutual_information/entropy", torch.stack([terms.entropy for terms in found]).mean())
        return {"mutual_information": torch.stack([terms.loss for terms in found]).mean()}

    def _shares(self, step: Step, alignment: Alignment, key: str, i: int, j: int) -> tuple[Tensor, Tensor]:
        """Aligned shares [B, S, K, H, W] of both views, zero where the views do not meet."""
        weight = seen_twice(step, alignment, j)[:, None]
        size = step.batch.images[i].shape[2:]
        shares = []
        for operator, view in ((alignment.online, i), (alignment.target, j)):
            logits = wide(step.apply(key, view, "online"))
            # a learned alignment says logits of cells that it predicts; any other resamples probabilities, as published
            x = self._softmax(operator(logits)) if alignment.fills_hidden else operator(self._softmax(logits))
            mask = weight
            if self.grid == "pixels":
                x = F.interpolate(x, size, mode="bilinear", align_corners=False)
                mask = F.interpolate(weight, size)
            shares.append((x * mask).unflatten(1, (self.sub_heads, -1)))  # type: ignore[no-untyped-call]
        return shares[0], shares[1]

    def _softmax(self, logits: Tensor) -> Tensor:
        """Over the clusters of each sub-head, [B, S K, h, w]."""
        return logits.view(len(logits), self.sub_heads, -1, *logits.shape[2:]).softmax(2).flatten(1, 2)

    def _width(self, dims: Dims) -> int:
        return dims.heads[self.head] if self.head else self.clusters * self.sub_heads


class Terms(NamedTuple):
    """Scalars of a pair of views."""

    loss: Tensor
    nats: Tensor  # mutual information, mean over displacements
    entropy: Tensor  # of the clusters' sizes by ln K


def information(x1: Tensor, x2: Tensor, displacement: int, marginal_weight: float, collapsed: bool = False) -> Terms:
    """Of shares [B, K, H, W] of two aligned views: L = mean over displacements of sum_ij -P (ln P - lambda ln P_i - lambda ln P_j).

    P is the joint distribution of the clusters of all places and images of all ranks, made symmetric.  Float32 or wider, whatever the autocast.
    """
    with torch.autocast(x1.device.type, enabled=False):
        counts = gather_rows(joint_counts(wide(x1), wide(x2), displacement)[None]).sum(0)  # [T', T', K, K]
        if collapsed:
            counts = counts.sum((0, 1), keepdim=True)
        total = counts.sum((2, 3), keepdim=True)
        p = counts / (total.detach() if collapsed else total).clamp(min=LEAST)
        p = (p + p.mT) / 2
        logs = p.clamp(min=LEAST).log()
        rows, columns = (p.sum(d, keepdim=True).clamp(min=LEAST).log().expand_as(p) for d in (3, 2))
        p = p.clamp(min=LEAST)
        nats = (p * (logs - rows - columns)).sum((2, 3)).mean()
        loss = -(p * (logs - marginal_weight * (rows + columns))).sum((2, 3)).mean()
        sizes = p.sum(3).mean((0, 1))
        return Terms(loss, nats.detach(), torch.special.entr(sizes).sum().detach() / math.log(len(sizes)))


def joint_counts(x1: Tensor, x2: Tensor, displacement: int) -> Tensor:
    """[2T+1, 2T+1, K, K]: at (u + T, v + T), i, j the sum over images and places (y, x) of x1[i, y + u, x + v] x2[j, y, x]; x1 is 0 outside.

    By Fourier transforms in float64: as exact as the sums themselves, and on maps of 64 x 64 thirty times as fast as the convolution.
    """
    t = displacement
    size = (x1.shape[2] + 2 * t, x1.shape[3] + 2 * t)
    first = torch.fft.rfft2(F.pad(x1.double(), (t, t, t, t)))
    second = torch.fft.rfft2(x2.double(), s=size)
    products = torch.einsum("bihw,bjhw->ijhw", first, second.conj())
    sums: Tensor = torch.fft.irfft2(products, s=size)[..., : 2 * t + 1, : 2 * t + 1]
    return sums.permute(2, 3, 0, 1).to(x1.dtype)
