"""Modified Deep Clustering (the baseline of PiCIE's paper): cells are classified into the clusters of their features."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from attrs import field
from attrs.validators import gt, le
from torch import Tensor, nn

from twinview.branch import Branches, Head
from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops.cell_clusters import ClusteredCells, cell_labels, cluster_cells, unit
from twinview.ops.cross_entropy import class_weighted_cross_entropy
from twinview.ops.maps import visible_cells
from twinview.values import DataFactory, Dims, Progress, Step, Traits


@part
class Classifier:
    """A 1x1 convolution with bias from unit features to K clusters; a pixel's cluster is its largest channel.

    A `[[head]]` that `deepcluster.cells` trains and draws anew before every epoch, and that `probes.cluster` scores.
    """

    clusters: int = field(default=27, validator=gt(1))  # K

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells; gives maps of K channels."""
        return Traits(needs=frozenset({"cells"}), channels=self.clusters)

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`projector`, online only."""
        return {"projector": Head(UnitClassifier(dims.width("cells"), self.clusters), "online_only")}


class UnitClassifier(nn.Module):
    """Cells [B, C, h, w] -> logits [B, K, h, w] of their unit features; weights N(0, 0.01), biases 0."""

    def __init__(self, channels: int, clusters: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, clusters, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, cells: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.conv(unit(cells))
        return logits


@part
class Cells:
    """Cross-entropy of a learned classifier against the clusters of cells; a class weighs as often as it occurs, as released.

    Before every epoch the cells of the first view, as that epoch draws it, are clustered and labeled as `picie.clusters` has it; the classifier and
    what the optimizer remembers of it are drawn anew.
    """

    head: str = ""  # a shared [[head]] deepcluster.classifier in place of its own
    clusters: int = field(default=27, validator=[gt(1), le(255)])  # K
    initial: int = field(default=5120, validator=gt(0))  # images of the first rounds of k-means
    iterations: int = field(default=20, validator=gt(0))  # of these rounds

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells, and the coming epoch's crops."""
        return Traits(needs=frozenset({"cells", "known_epoch"}))

    @hookimpl
    def check(self, dims: Dims) -> None:
        """Raises RecipeError for a shared head of another number of clusters."""
        if self.head and dims.heads.get(self.head) != self.clusters:
            instead = f'Write [[head]] use = "deepcluster.classifier", name = "{self.head}", clusters = {self.clusters}.'
            raise RecipeError(f"[[loss]] deepcluster.cells.head: {self.head!r} has not {self.clusters} clusters. {instead}")

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The state `clusters`, and its own online-only `projector` where none is shared."""
        own = {} if self.head else {"projector": Head(UnitClassifier(dims.width("cells"), self.clusters), "online_only")}
        return own | {"clusters": Head(ClusteredCells(1, self.clusters, dims.width("cells")), "state")}

    @hookimpl
    def before_epoch(self, branches: Branches, data: DataFactory, progress: Progress, rng: np.random.Generator) -> None:
        """Cluster, label, and draw the classifier anew."""
        state = branches.online.of(self, "clusters")
        cluster_cells(self, [state], branches, data, progress, rng, sides=1, initial=self.initial, iterations=self.iterations, align=None)
        branches.reset(self.head or self, "projector")

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`cells`, in nats, at first ln K."""
        logits = step.apply(step.head(self.head or self, "projector"), 0, "online")
        labels = cell_labels(self, step)[:, 0].to(logits.device)
        labels = labels.masked_fill(visible_cells(step, 0, logits) == 0, -1)
        return {"cells": class_weighted_cross_entropy(logits, labels, step.branches.online.of(self, "clusters").weights[0])}
