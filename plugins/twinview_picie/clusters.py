"""The loss, the clustering before each epoch, and the centroids as a head that evaluations share."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from attrs import field
from attrs.validators import ge, gt, le
from torch import Tensor

from twinview.branch import Branches, Head
from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops.cell_clusters import CentroidHead, ClusteredCells, cell_labels, cluster_cells, unit
from twinview.ops.cross_entropy import balanced_weights, class_weighted_cross_entropy
from twinview.ops.maps import seen_twice
from twinview.values import DataFactory, Dims, Progress, Step, Traits

SIDES = 2  # of a pair of views


@part
class Centroids:
    """K centroids as a classifier of cells: a pixel's cluster is that of the largest <f, c> of its unit feature.

    A `[[head]]` that `picie.clusters` fills with the first view's centroids before every epoch, and that `probes.cluster` scores.
    """

    clusters: int = field(default=27, validator=gt(1))  # K

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells; gives maps of K channels."""
        return Traits(needs=frozenset({"cells"}), channels=self.clusters)

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`projector`, which nothing trains."""
        return {"projector": Head(CentroidHead(self.clusters, dims.width("cells")), "state")}


@part
class Clusters:
    """PiCIE's loss: cross-entropy of cells against the clusters of their own view (within) and of the other view (across), half and half.

    Before every epoch the cells of each view, as that epoch draws it, are clustered (k-means in one pass, the network in train mode) and labeled
    (in eval mode).  Logits are <f, c> of unit features and fixed centroids; a class weighs as often as it occurs, as released.  Both views come from
    the online branch: photometry must not change a label (invariance), the alignment undoes crop and mirroring (equivariance).
    """

    align: str = ""  # the recipe's alignment by name, for a recipe that has several
    head: str = ""  # a [[head]] picie.centroids of as many clusters that is to hold the first view's centroids; empty: none
    clusters: int = field(default=27, validator=gt(1))  # K
    auxiliary: int = field(default=0, validator=ge(0))  # clusters of a second clustering (PiCIE + H: 100); 0: none
    initial: int = field(default=5120, validator=gt(0))  # images of the first rounds of k-means
    iterations: int = field(default=20, validator=gt(0))  # of these rounds
    across: float = field(default=0.5, validator=[ge(0), le(1)])  # weight of the loss between views; within a view it is 1 less this

    def __attrs_post_init__(self) -> None:
        if self.auxiliary == 1 or max(self.clusters, self.auxiliary) > 255:
            raise ValueError("clusters and auxiliary are numbers from 2 to 255, or auxiliary 0 for none")

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells, an alignment, and the coming epoch's crops."""
        return Traits(needs=frozenset({"cells", "alignment", "known_epoch"}))

    @hookimpl
    def aligned_widths(self, dims: Dims) -> tuple[int, ...]:
        """Features are aligned."""
        return (dims.width("cells"),)

    @hookimpl
    def check(self, dims: Dims) -> None:
        """Raises RecipeError for views without pairs, and for a shared head of another number of clusters."""
        if not dims.pairs:
            raise RecipeError("[[loss]] picie.clusters: clusters two views of an image, and [views] pairs none. Choose views that are paired.")
        if self.head and dims.heads.get(self.head) != self.clusters:
            instead = f'Write [[head]] use = "picie.centroids", name = "{self.head}", clusters = {self.clusters}.'
            raise RecipeError(f"[[loss]] picie.clusters.head: {self.head!r} has not {self.clusters} clusters. {instead}")

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """State: `clusters0`, and with an auxiliary clustering `clusters1`: centroids and weights of both views."""
        return {f"clusters{n}": Head(ClusteredCells(SIDES, k, dims.width("cells")), "state") for n, k in enumerate(self._counts)}

    @property
    def _counts(self) -> tuple[int, ...]:
        return (self.clusters, self.auxiliary) if self.auxiliary else (self.clusters,)

    @hookimpl
    def before_epoch(self, branches: Branches, data: DataFactory, progress: Progress, rng: np.random.Generator) -> None:
        """Cluster view 1, then view 2, each by itself; then label both.  Labels lie beside the checkpoints."""
        states = [branches.online.of(self, f"clusters{n}") for n in range(len(self._counts))]
        cluster_cells(self, states, branches, data, progress, rng, sides=SIDES, initial=self.initial, iterations=self.iterations, align=self.align)
        if self.head:
            branches.online.of(self.head, "projector").centroids.copy_(states[0].centroids[0])

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`within` and `across`, each with its weight, and the same of the auxiliary clustering."""
        i, j = step.pairs[0]
        alignment = step.alignment(i, j, self.align)
        features = unit(alignment.online(step.online[i].at("cells"))), unit(alignment.target(step.online[j].at("cells")))
        seen = seen_twice(step, alignment, j) > 0
        labels = cell_labels(self, step).to(seen.device)  # -1: none
        balance = balanced_weights(self.clusters, self.auxiliary) if self.auxiliary else (1.0,)
        found: dict[str, Tensor] = {}
        for n, share in enumerate(balance):
            state: ClusteredCells = step.branches.online.of(self, f"clusters{n}")

            def term(side: int, other: int, n: int = n, state: ClusteredCells = state) -> Tensor:
                """Features of a side under the centroids of the other, against the labels and the weights of the other."""
                target = labels[:, n * SIDES + other].masked_fill(~seen, -1)
                return class_weighted_cross_entropy(state.logits(features[side], other), target, state.weights[other])

            name = "auxiliary_" if n else ""
            found[f"{name}within"] = share * (1 - self.across) * (term(0, 0) + term(1, 1)) / 2
            found[f"{name}across"] = share * self.across * (term(0, 1) + term(1, 0)) / 2
        return found
