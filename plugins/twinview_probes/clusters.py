"""What gives every place of an image its cluster: a head that was trained to, or k-means on frozen features."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.errors import DataError
from twinview.ops.ranks import from_first, rank
from twinview.values import PlainBatch
from twinview_probes.features import Dense, sample_cells


class Clusterer(Protocol):
    """Images [B, C, H, W], normalized -> scores [B, k, h, w]; a place's cluster is the largest."""

    k: int

    def __call__(self, images: Tensor) -> Tensor:
        """The scores, float32."""
        ...


class HeadClusters:
    """The channels of a trained projector on the encoder's cells."""

    def __init__(self, encoder: nn.Module, head: nn.Module, blank: Tensor) -> None:
        """`blank`: an image [1, C, H, W], whose scores are counted."""
        self.encoder, self.head = encoder.eval(), head.eval()
        self.k = self(blank).shape[1]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(self.encoder(images).at("cells"))
        return found.float()


class FeatureClusters:
    """K-means on cells: features standardized channel by channel, then of length 1 (PiCIE clusters unit features)."""

    def __init__(self, dense: Dense, batches: Iterable[PlainBatch], k: int, *, cells: int, seed: int, device: torch.device) -> None:
        """Fit on up to `cells` cells of each image of all ranks; rank 0 does, and all get the same."""
        self.dense, self.k = dense, k
        x, _, order = sample_cells(dense, batches, cells=cells, ignore=torch.empty(0, dtype=torch.int64, device=device), seed=seed)
        var, self.mean = torch.var_mean(x, 0, correction=0)
        self.scale = torch.where(var > 1e-12, var.rsqrt(), 0)
        if len(x) < k:
            raise DataError(f"[[evaluate]] probes.cluster: {len(x)} cells for {k} clusters. Write larger images or cells, or fewer clusters.")
        points = F.normalize((x[order] - self.mean) * self.scale).cpu().numpy()
        self.centers = x.new_zeros(k, x.shape[1])
        if rank() == 0:
            from sklearn.cluster import KMeans

            self.centers.copy_(torch.from_numpy(KMeans(k, n_init=4, random_state=seed).fit(points).cluster_centers_))
        from_first(self.centers)

    def __call__(self, images: Tensor) -> Tensor:
        """Minus the squared distance from each center, up to the place's own part."""
        maps = self.dense(images)
        unit = F.normalize((maps - self.mean[:, None, None]) * self.scale[:, None, None], dim=1)
        return F.conv2d(unit, 2 * self.centers[:, :, None, None], -self.centers.square().sum(1))
