"""DeepCluster's loss: images are classified into the clusters of their features, which are made anew before every epoch."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from attrs import field
from attrs.validators import deep_iterable, ge, gt, lt
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.branch import Branch, Branches, Head
from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops.checks import pixels
from twinview.ops.euclidean_kmeans import lloyd, nearest, smallest
from twinview.ops.means import wide
from twinview.ops.ranks import summed
from twinview.ops.seeding import uniform
from twinview.ops.whiten import whitened
from twinview.values import DataFactory, Dims, Features, Progress, Step, Traits


@part
class Images:
    """Cross-entropy against the cluster of an image (DeepCluster, eq. 1), with as many images of each cluster in an epoch.

    Before every epoch the features of all images, whole and in eval mode, are whitened principal components, normalized and clustered; the classifier
    and what the optimizer remembers of it are drawn anew.  Features are the encoder's pooled ones or its flattened cells, behind `hidden` layers.
    """

    clusters: int = field(default=10000, validator=gt(1))  # K
    components: int = field(default=256, validator=gt(0))  # principal components that are clustered; at most the width of the features
    iterations: int = field(default=20, validator=gt(0))  # of k-means
    on: Literal["pooled", "cells"] = "pooled"  # what the layers see; cells: flattened, views of one size
    hidden: list[int] = field(factory=list, validator=deep_iterable(gt(0)))  # widths of layers before the classifier; published: [4096, 4096]
    dropout: float = field(default=0.5, validator=[ge(0), lt(1)])  # before each of these layers
    size: tuple[int, int] = field(default=(224, 224), validator=pixels)  # height, width of the whole images whose features are clustered
    batch: int = field(default=64, validator=gt(0))  # of these at once

    @hookimpl
    def traits(self) -> Traits:
        """Needs pooled features, or cells, and numbered samples."""
        return Traits(needs=frozenset({self.on, "ids"}))

    @hookimpl
    def check(self, dims: Dims) -> None:
        """Raises RecipeError for more clusters than images, and for flattened cells of views of another size."""
        if self.on == "cells" and any(size != self.size for size in dims.sizes):
            raise RecipeError(f"[[loss]] deepcluster.images.size: flattened cells want views of one size. Write size = {list(dims.sizes[0])}.")
        if 0 < dims.dataset_size < self.clusters:
            fault = f"{self.clusters} clusters of {dims.dataset_size} images"
            raise RecipeError(f"[[loss]] deepcluster.images.clusters: makes {fault}. Write fewer, some {max(2, dims.dataset_size // 100)}.")

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """Online-only `layers` and `classifier`; the state `labels`, the cluster of every image."""
        width = dims.width("pooled") if self.on == "pooled" else dims.width("cells") * dims.grids[0][0] * dims.grids[0][1]
        layers: list[nn.Module] = []
        for n, out in enumerate(self.hidden):
            layers += [*([nn.ReLU()] if n else []), nn.Dropout(self.dropout), _linear(width, out)]
            width = out
        return {
            "layers": Head(nn.Sequential(*layers), "online_only"),
            "classifier": Head(_linear(width, self.clusters), "online_only"),
            "labels": Head(Labels(dims.dataset_size), "state"),
        }

    @hookimpl
    @torch.no_grad()
    def before_epoch(self, branches: Branches, data: DataFactory, progress: Progress, rng: np.random.Generator) -> None:
        """Features of all images, their clusters, and a new classifier."""
        layers: nn.Module = branches.online.of(self, "layers")
        rows, ids = list[Tensor](), list[Tensor]()
        training = layers.training
        layers.eval()
        for plain in data.plain(size=self.size, batch_size=self.batch, crop=True):
            rows.append(wide(layers(self._given(data.features(branches.online, plain)))))
            ids.append(plain.ids)
        layers.train(training)
        points, places = whitened(torch.cat(rows), self.components), torch.cat(ids)
        draws = uniform(places, 2, int(rng.integers(1 << 62)), progress.epoch, "deepcluster").double()  # of the run's seed, as `rng` is
        start = smallest(points, (draws[:, 0] + draws[:, 1] / (1 << 24)).to(points.device), self.clusters)
        centroids, _, _ = lloyd(points, start, self.iterations, rng)
        labels: Labels = branches.online.of(self, "labels")
        found = torch.zeros_like(labels.clusters)
        found[places.to(found.device)] = nearest(points, centroids).to(found) + 1
        labels.clusters.copy_(summed(found) - 1)
        branches.reset(self, "classifier")

    @hookimpl
    def sample_weights(self, branches: Branches) -> Tensor:
        """One by the size of a sample's cluster: each cluster has as many draws of an epoch; images that did not decode have none."""
        clusters: Tensor = branches.online.of(self, "labels").clusters.cpu()
        sizes = (clusters + 1).bincount(minlength=self.clusters + 1)
        return torch.where(clusters >= 0, 1 / sizes[clusters + 1].double(), 0.0)

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`images`, mean over the views; in nats, at first ln K."""
        labels = step.branches.online.of(self, "labels").clusters[step.batch.ids.to(step.pixels[0].device)].long()
        found = [F.cross_entropy(wide(self._logits(step.branches.online, features)), labels, ignore_index=-1) for features in step.online]
        return {"images": torch.stack(found).mean()}

    def _logits(self, branch: Branch, features: Features) -> Tensor:
        x: Tensor = branch.of(self, "layers")(self._given(features))
        logits: Tensor = branch.of(self, "classifier")(F.relu(x) if self.hidden else x)
        return logits

    def _given(self, features: Features) -> Tensor:
        return features.at("pooled") if self.on == "pooled" else features.at("cells").flatten(1)


class Labels(nn.Module):
    """`clusters` [images] int32: the cluster of every image, -1 where it did not decode."""

    clusters: Tensor

    def __init__(self, images: int) -> None:
        super().__init__()
        self.register_buffer("clusters", torch.zeros(images, dtype=torch.int32))


def _linear(channels: int, out: int) -> nn.Linear:
    """Weights N(0, 0.01), biases 0."""
    layer = nn.Linear(channels, out)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
