"""Clustering consistency: each online cell predicts the centroid of the cluster that its partner fell into (MultiSiam, figure 2c)."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from attrs import field
from attrs.validators import ge
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.branch import Head
from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops import conv_mlp, cosine_loss
from twinview.ops.kmeans import spherical_kmeans
from twinview.ops.propagate import propagate
from twinview.values import Alignment, Dims, Step, Traits
from twinview_multisiam.pictures import cluster_sheet
from twinview_multisiam.watch import watch


@part
class Clusters:
    """MultiSiam's dense loss, L = -mean_i cos(y_i, sg c_a(i)), over all ordered pairs of views.

    The aligned target map of each image is clustered by itself; the online map predicts through self-attention,
    y_i = sum_j max(cos(x_i, x_j), 0)^gamma q(x_j).  The paper's total, lambda * image + (1 - lambda) * clusters, is written as the two
    losses' weights: `byol.image` with weight lambda, this one with 1 - lambda.
    """

    align: str = ""  # the recipe's alignment by name, for a recipe that has several
    clusters: int = field(default=3, validator=ge(1))  # K; 1 = the mean of the overlap, all cells = cell-to-cell consistency
    iterations: int = field(default=10, validator=ge(0))  # of k-means
    hidden: int = field(default=4096, validator=ge(1))  # width of the projector's and the predictor's hidden layer
    channels: int = field(default=256, validator=ge(1))  # width of the projections
    gamma: float = field(default=2.0, validator=ge(1))  # sharpness of the attention
    normalize_values: bool = True  # every cell's vote has the same length
    predictor: Literal["mlp", "linear"] = "mlp"  # q: two layers, or one

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells and an alignment, whose extra it hands to its predictor."""
        return Traits(needs=frozenset({"cells", "pairs", "alignment"}), gives=frozenset({"uses_extra"}))

    @hookimpl
    def check(self, dims: Dims) -> None:
        """Raises RecipeError for more clusters than a target view's map has cells.

        An alignment may have a grid of its own, which is not known here: with more cells it shows no more than that map does, and with fewer
        some clusters share a centroid.
        """
        for _, target in dims.pairs:
            height, width = dims.grids[target]
            if self.clusters > height * width:
                fault = f"clusters = {self.clusters}, and the views have {height} x {width} cells"
                raise RecipeError(f"[[loss]] multisiam.clusters: {fault}. Raise views.size, or choose encoder cells of a smaller stride.")

    @hookimpl
    def aligned_widths(self, dims: Dims) -> tuple[int, ...]:
        """Projections of both branches are aligned."""
        return (self.channels,)

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The projector g2, averaged in the target, and the predictor q, online only; both on maps."""
        told = self.channels + dims.extras.get(self.align, 0)
        predictor = conv_mlp(told, self.hidden, self.channels) if self.predictor == "mlp" else nn.Conv2d(told, self.channels, 1)
        return {
            "projector": Head(conv_mlp(dims.width("cells"), self.hidden, self.channels)),
            "predictor": Head(predictor, "online_only"),
        }

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`clusters`, in [-1, 1]; images whose two views do not meet count for nothing."""
        projector, predictor = step.head(self, "projector"), step.branches.online.of(self, "predictor")
        losses, seen = [], []
        for online, target in step.pairs:
            alignment = step.alignment(online, target, self.align)
            z = step.apply(projector, online, "online")
            x, x_target = alignment.online(z), alignment.target(step.apply(projector, target, "target"))
            first = step.uniform(f"kmeans/{online}/{target}", 1)[:, 0]
            centroids, assignment = self.cluster(x_target, first, alignment.weight)
            y = self.predict(predictor, x, alignment)
            losses.append(cosine_loss(y, own_centroid(centroids, assignment), alignment.weight))
            if step.watch:
                seen.append(watch(z, assignment, self.clusters, alignment.weight))
        for name in seen[0] if seen else ():
            step.note(f"clusters/{name}", torch.stack([s[name] for s in seen]).mean())
        return {"clusters": torch.stack(losses).mean()}

    @hookimpl
    def pictures(self, step: Step) -> dict[str, Tensor]:
        """`clusters`: each target view beside the clusters of its own whole map, for a few images of the batch."""
        projector = step.head(self, "projector")
        views = sorted({target for _, target in step.pairs})
        found = {}
        for view in views:
            cells = step.apply(projector, view, "target")
            found[view] = self.cluster(cells, step.uniform(f"kmeans/{view}", 1)[:, 0])[1]
        return {"clusters": cluster_sheet(step.batch, found, self.clusters)}

    def cluster(self, maps: Tensor, first: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """K-means within each image: maps [B, C, h, w] -> centroids [B, K, C] and each cell's cluster [B, h, w]."""
        votes = None if weight is None else weight.flatten(1)
        centroids, assignment = spherical_kmeans(maps.flatten(2).mT, self.clusters, first, iterations=self.iterations, weight=votes)
        return centroids, assignment.view(len(maps), *maps.shape[2:])

    def predict(self, predictor: nn.Module, x: Tensor, alignment: Alignment) -> Tensor:
        """y [B, C, h, w].  What an alignment tells besides goes into q alone: in the similarity it would make the attention positional."""
        told = x if alignment.extra is None else torch.cat([alignment.extra, x], 1)
        values = predictor(told).float()
        if self.normalize_values:
            values = F.normalize(values, dim=1)
        return propagate(x, values, gamma=self.gamma, weight=alignment.weight)


def own_centroid(centroids: Tensor, assignment: Tensor) -> Tensor:
    """[B, C, h, w]: the centroid [B, K, C] of each cell's cluster [B, h, w]."""
    index = assignment.flatten(1)[..., None].expand(-1, -1, centroids.shape[2])
    found = centroids.gather(1, index).mT  # [B, C, P]
    return found.reshape(*found.shape[:2], *assignment.shape[1:])
