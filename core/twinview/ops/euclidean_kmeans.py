"""K-means by Euclidean distance on points of all ranks: Lloyd's rounds, and one pass of mini-batches behind them (PiCIE, DeepCluster)."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from twinview.ops.ranks import gather_rows, summed

DISTANCES = 1 << 26  # held at once
SPLIT = 1 / 1024  # by how much the two halves of a split cluster differ


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """[n] int64: the nearest of `centroids` [k, C] to each of `points` [n, C], the largest 2 <f, c> - |c|^2."""
    lengths = centroids.square().sum(1)
    found = [torch.addmm(-lengths, rows, centroids.mT, alpha=2).argmax(1) for rows in torch.split(points, DISTANCES // len(centroids))]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=points.device)


def lloyd(points: Tensor, start: Tensor, iterations: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """`points` [n, C] of this rank and the same `start` [k, C] and `rng` on every rank -> centroids [k, C], counts [k], mean squared distance.

    Means are those of all ranks' points, counts and distance those under the last centroids.  An empty cluster takes half of a large one, which
    `rng` chooses with chances as sizes less one; the two differ by 1 +- 1/1024 along alternating coordinates (faiss's rule).
    """
    centroids = start.clone()
    for _ in range(iterations):
        sums, counts, _ = gathered_sums(points, centroids)
        means = (sums / counts.clamp(min=1)[:, None]).to(centroids.dtype)
        centroids = torch.where(counts[:, None] > 0, means, centroids)
        if not bool((counts > 0).all()) and float(counts.sum()) > len(counts):
            centroids = _split(centroids, counts, rng)
    _, counts, distance = gathered_sums(points, centroids)
    return centroids, counts, distance / counts.sum().clamp(min=1)


def gathered_sums(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Over the points of all ranks: sums [k, C], counts [k] by nearest centroid, and the sum of squared distances; float64."""
    k, channels = centroids.shape
    found = torch.zeros(k * channels + k + 1, dtype=torch.float64, device=points.device)
    sums, counts = found[: k * channels].view(k, channels), found[k * channels : -1]
    for rows in torch.split(points, DISTANCES // k):
        labels = nearest(rows, centroids)
        sums.index_add_(0, labels, rows.double())
        counts += labels.bincount(minlength=k)
        found[-1] += (rows - centroids[labels]).square().sum().double()
    summed(found)
    return sums, counts, found[-1]


def _split(centroids: Tensor, counts: Tensor, rng: np.random.Generator) -> Tensor:
    centroids, sizes = centroids.clone(), counts.tolist()
    signs = torch.ones_like(centroids[0])
    signs[1::2] = -1
    for empty in [i for i, n in enumerate(sizes) if not n]:
        chances = np.maximum(np.array(sizes) - 1, 0)
        large = int(rng.choice(len(sizes), p=chances / chances.sum()))
        centroids[empty] = centroids[large] * (1 + SPLIT * signs)
        centroids[large] = centroids[large] * (1 - SPLIT * signs)
        sizes[empty], sizes[large] = sizes[large] / 2, sizes[large] / 2
    return centroids


class StreamingKMeans:
    """K-means in one pass: Lloyd's rounds on the first batches together, then each further batch moves its centroids (PiCIE, section 3).

    n_k += m_k, c_k <- (1 - m_k / n_k) c_k + m_k / n_k mean_k, where m_k points of a batch are nearest to c_k and n_k starts from the first batches.
    Every rank adds as many batches; the result is that of one process with their points together.
    """

    def __init__(self, k: int, initial: int, iterations: int, rng: np.random.Generator) -> None:
        """`initial` batches for the rounds; `rng` draws the same on every rank."""
        self.k, self.initial, self.iterations, self.rng = k, initial, iterations, rng
        self.kept: list[Tensor] = []
        self.draws: list[Tensor] = []
        self.centroids: Tensor | None = None
        self.counts = torch.empty(0)
        self.losses: list[Tensor] = []

    def add(self, points: Tensor, draws: Tensor) -> None:
        """`points` [n, C] of a batch, and a number in [0, 1) for each, [n] float64: the k points of the smallest ones are where the rounds start."""
        if self.centroids is not None:
            self._update(points)
            return
        self.kept.append(points)
        self.draws.append(draws)
        if len(self.kept) == self.initial:
            self._begin()

    def finish(self) -> tuple[Tensor, Tensor]:
        """Centroids [k, C] and the mean over the start and each batch of the mean squared distance.  Raises ValueError for fewer points than k."""
        if self.centroids is None:
            self._begin()
        assert self.centroids is not None
        return self.centroids, torch.stack(self.losses).mean()

    def _begin(self) -> None:
        points, draws = torch.cat(self.kept), torch.cat(self.draws)
        self.kept, self.draws = [], []
        start = smallest(points, draws, self.k)
        self.centroids, self.counts, loss = lloyd(points, start, self.iterations, self.rng)
        self.losses.append(loss)

    def _update(self, points: Tensor) -> None:
        assert self.centroids is not None
        sums, counts, distance = gathered_sums(points, self.centroids)
        self.counts = self.counts + counts
        rate = (counts / (self.counts + 1e-6))[:, None]
        moved = ((1 - rate) * self.centroids + rate * sums / counts.clamp(min=1)[:, None]).to(self.centroids.dtype)
        self.centroids = torch.where(counts[:, None] > 0, moved, self.centroids)
        self.losses.append(distance / counts.sum().clamp(min=1))


def smallest(points: Tensor, draws: Tensor, k: int) -> Tensor:
    """[k, C]: of all ranks' `points` [n, C] those whose `draws` [n] are smallest, in their order; k random points, however they lie on ranks.

    Raises ValueError where there are fewer.
    """
    first = draws.argsort()[:k]
    every, order = gather_rows(points[first].detach()), gather_rows(draws[first])
    if len(every) < k:
        raise ValueError(f"{len(every)} points for {k} clusters")
    return every[order.argsort()[:k]]
