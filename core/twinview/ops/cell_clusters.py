"""Cells clustered before an epoch, as it draws them: k-means in one pass, then a label for every cell (PiCIE, Modified Deep Clustering)."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.branch import Branches
from twinview.errors import CheckpointError, RecipeError
from twinview.ops.euclidean_kmeans import StreamingKMeans, nearest
from twinview.ops.means import wide
from twinview.ops.ranks import summed
from twinview.ops.seeding import uniform
from twinview.values import Batch, DataFactory, Progress, Step

KEPT, KEPT_BY_SAMPLE = "cells", "labels"  # names of what lies by place in the epoch; of what an earlier version kept by sample


def unit(maps: Tensor) -> Tensor:
    """[B, C, h, w] -> the same, each cell of length 1; float32 or wider, whatever the autocast."""
    return F.normalize(wide(maps), dim=1)


class CentroidHead(nn.Module):
    """Cells [B, C, h, w] -> [B, K, h, w]: the product of each unit feature with each of `centroids` [K, C]."""

    centroids: Tensor

    def __init__(self, clusters: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("centroids", torch.zeros(clusters, channels))

    def forward(self, cells: Tensor) -> Tensor:
        """Logits."""
        return F.conv2d(unit(cells), self.centroids[:, :, None, None].to(wide(cells).dtype))


class ClusteredCells(nn.Module):
    """State of a clustering of several sides: `centroids` [sides, K, C], and `weights` [sides, K], the share of cells that each cluster has."""

    centroids: Tensor
    weights: Tensor

    def __init__(self, sides: int, clusters: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("centroids", torch.zeros(sides, clusters, channels))
        self.register_buffer("weights", torch.zeros(sides, clusters))

    def logits(self, features: Tensor, side: int) -> Tensor:
        """Unit features [B, C, h, w] -> [B, K, h, w]: their products with a side's centroids."""
        return F.conv2d(features, self.centroids[side, :, :, None, None].to(features.dtype))


@torch.no_grad()
def cluster_cells(
    part: object, states: Sequence[ClusteredCells], branches: Branches, data: DataFactory, progress: Progress, rng: np.random.Generator,
    *, sides: int, initial: int, iterations: int, align: str | None,
) -> None:
    """Cluster the unit features of the coming epoch's first views, or first pair of views, and keep a label of every cell of every reading.

    One pass for each side: the k-means of all `states` together, in train mode, which moves BatchNorm's running statistics.  Then one to label, in
    eval mode.  The first rounds take the batches that hold `initial` images.  Labels are kept for `cell_labels` by `batch.places`,
    since an epoch that has a sample twice has another crop of it, uint8 [len(states) * sides, h', w']: the cluster + 1, 0 where the alignment shows
    no such cell.  `align`: an alignment's name, of the first pair; None: side 0 is the whole map of view 0, and so on.  All ranks call it and get the
    same.  Raises RecipeError for fewer cells than clusters.
    """
    source = _Source(part, branches, data, progress.epoch, align)
    for side in range(sides):
        means: list[StreamingKMeans] = []
        for batch in data.views(progress.epoch):
            if not means:
                batches = -(-initial // int(summed(states[0].centroids.new_tensor(len(batch.keys)))))
                means = [StreamingKMeans(state.centroids.shape[1], batches, iterations, rng) for state in states]
            maps, seen = source.features(batch, side, train=True)
            points = maps.movedim(1, -1)[seen]
            draws = _draws(batch, maps[0, 0].numel(), side).view(seen.shape).to(seen.device)[seen]
            for one in means:
                try:
                    one.add(points, draws)
                except ValueError as e:
                    raise RecipeError(f"[[loss]] of {type(part).__name__}: {e}. Write fewer clusters, or more initial images.") from None
        for state, one in zip(states, means, strict=True):
            state.centroids[side] = one.finish()[0]
    source.label(states, sides)


def cell_labels(part: object, step: Step) -> Tensor:
    """What `cluster_cells` kept of a batch, on the CPU: [B, len(states) * sides, h', w'] int64, the cluster, -1 for none.

    Raises CheckpointError where it is gone, or is an earlier version's.
    """
    branches, epoch = step.branches, step.progress.epoch
    try:
        kept = branches.samples(part, KEPT, epoch)
    except CheckpointError as e:
        try:
            branches.samples(part, KEPT_BY_SAMPLE, epoch)
        except CheckpointError:
            raise e from None
        said = f"the labels of epoch {epoch} are an earlier version's, by sample, which mixed up the crops of one"
        raise CheckpointError(f"[[loss]] of {type(part).__name__}: {said}. Go on from a checkpoint of another epoch, or train anew.") from None
    return kept.read(step.batch.places).long() - 1


class _Source:
    """An epoch's cells, side by side."""

    def __init__(self, part: object, branches: Branches, data: DataFactory, epoch: int, align: str | None) -> None:
        self.part, self.branches, self.data, self.epoch, self.align = part, branches, data, epoch, align

    def features(self, batch: Batch, side: int, *, train: bool) -> tuple[Tensor, Tensor]:
        """Unit features [B, C, h', w'] of a side, and where it has any [B, h', w'] bool."""
        view = side if self.align is None else batch.geometry.pairs[0][side]
        cells = self.data.features(self.branches.online, batch, view, train=train, move_statistics=train).at("cells")
        if self.align is None:
            return unit(cells), torch.ones_like(cells[:, 0], dtype=torch.bool)
        alignment = self.data.alignment(batch, *batch.geometry.pairs[0], self.align)
        operator = alignment.target if side else alignment.online
        return unit(operator(cells)), alignment.weight > 0

    def label(self, states: Sequence[ClusteredCells], sides: int) -> None:
        """A label for every cell of the epoch, and the weights of the clusters."""
        counts = [torch.zeros_like(state.weights, dtype=torch.float64) for state in states]
        store = None
        for batch in self.data.views(self.epoch):
            found = []
            for side in range(sides):
                maps, seen = self.features(batch, side, train=False)
                points = maps.movedim(1, -1).flatten(0, 2)
                for state, count in zip(states, counts, strict=True):
                    labels = nearest(points, state.centroids[side].to(points.dtype)).view(seen.shape)
                    count[side] += labels[seen].bincount(minlength=count.shape[1])
                    found.append(((labels + 1) * seen).byte())
            stacked = torch.stack([found[side * len(states) + n] for n in range(len(states)) for side in range(sides)], 1)
            if store is None:
                store = self.branches.new_samples(self.part, KEPT, self.epoch, stacked.shape[1:])
            store.write(batch.places, stacked)
        if store is not None:
            store.done()
        for state, count in zip(states, counts, strict=True):
            summed(count)
            state.weights.copy_(count / count.sum(1, keepdim=True).clamp(min=1))


def _draws(batch: Batch, cells: int, side: int) -> Tensor:
    """[B, cells] float64 in [0, 1): of 48 bits, from the samples and the epoch alone."""
    high, low = (uniform(batch.seeds, cells, batch.epoch, "cluster_cells", side, half).double() for half in ("high", "low"))
    return high + low / (1 << 24)
