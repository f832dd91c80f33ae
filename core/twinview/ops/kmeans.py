"""Spherical k-means over batches of point sets, on the points' device."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def spherical_kmeans(points: Tensor, k: int, first: Tensor, *, iterations: int = 10, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Group directions by cosine: points [B, P, C] -> unit centroids [B, k, C] float32 and assignment [B, P] int64.

    Each of the B sets is clustered by itself.  Seeding is greedy farthest-point; `first` [B] in [0, 1) picks where it starts.  A centroid
    is the normalized weighted mean of its points, an empty cluster keeps its own.  Points of `weight` [B, P] 0 form no centroid, but are
    assigned.  The same inputs give the same clusters.  Float32 whatever the autocast; no gradient.
    """
    with torch.autocast(points.device.type, enabled=False):
        points = F.normalize(points.float(), dim=2).contiguous()  # the products below are several times faster on it
        weight = points.new_ones(points.shape[:2]) if weight is None else weight.float()
        centroids = _farthest_points(points, k, first, weight > 0)
        for _ in range(iterations):
            members = F.one_hot(_nearest(points, centroids), k) * weight[..., None]  # [B, P, k]
            sums = members.mT @ points
            centroids = torch.where(sums.norm(dim=2, keepdim=True) > 0, F.normalize(sums, dim=2), centroids)
        return centroids, _nearest(points, centroids)


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    return (points @ centroids.mT).argmax(2)


def _farthest_points(points: Tensor, k: int, first: Tensor, votes: Tensor) -> Tensor:
    """[B, k, C]: a voting point, then again and again the voting point whose nearest seed is farthest away."""
    rows = torch.arange(len(points), device=points.device)
    place = (first * votes.sum(1)).long()  # the place-th voting point, counted from 0
    index = (votes.cumsum(1) <= place[:, None]).sum(1).clamp(max=points.shape[1] - 1)
    seeds = [points[rows, index]]
    nearest = torch.full_like(points[..., 0], -torch.inf)
    for _ in range(k - 1):
        nearest = torch.maximum(nearest, (points @ seeds[-1][..., None]).squeeze(2))
        seeds.append(points[rows, torch.where(votes, nearest, torch.inf).argmin(1)])
    return torch.stack(seeds, 1)
