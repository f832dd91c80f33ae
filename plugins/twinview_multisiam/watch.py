"""What is logged beside the loss: are the clusters used, do they follow the border, do the projections collapse."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.spread import feature_spread


@torch.no_grad()
def watch(z: Tensor, assignment: Tensor, k: int, weight: Tensor) -> dict[str, Tensor]:
    """Scalars of projections z [B, C, h, w] and of clusters `assignment` [B, h', w'] in 0..k-1, cells counted by `weight` [B, h', w'].

    `entropy` of the occupancy (nats; log k where all clusters are as large), `border`: mutual information between cluster and lying on the
    map's outermost ring (nats; clusters that follow the zero padding instead of the picture), `spread` of the projections (1: over the whole
    sphere; 0: collapsed).
    """
    return {
        "entropy": over_images(occupancy_entropy(assignment, k, weight), weight),
        "border": over_images(border_information(assignment, k, weight), weight),
        "spread": feature_spread(z.movedim(1, -1).flatten(0, 2)),
    }


def occupancy_entropy(assignment: Tensor, k: int, weight: Tensor) -> Tensor:
    """[B]: entropy of the clusters' sizes, nats."""
    return entropy(members(assignment, k, weight).sum(1))


def border_information(assignment: Tensor, k: int, weight: Tensor) -> Tensor:
    """[B]: I(cluster; border) = H(cluster) + H(border) - H(both), nats."""
    border = torch.ones_like(assignment[0], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    sides = F.one_hot(border.long().flatten(), 2).float()  # [P, 2]
    both = members(assignment, k, weight).mT @ sides  # [B, k, 2]
    return (entropy(both.sum(2)) + entropy(both.sum(1)) - entropy(both.flatten(1))).clamp(min=0)


def members(assignment: Tensor, k: int, weight: Tensor) -> Tensor:
    """[B, P, k]: each cell's weight, in the column of its cluster."""
    return F.one_hot(assignment.flatten(1), k) * weight.float().flatten(1)[..., None]


def entropy(counts: Tensor) -> Tensor:
    """[B]: of counts [B, n], nats; 0 where all are 0."""
    shares = counts / counts.sum(1, keepdim=True).clamp(min=torch.finfo(counts.dtype).tiny)
    nats: Tensor = torch.special.entr(shares).sum(1)
    return nats


def over_images(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of [B] over the images that have any weight."""
    counted = weight.flatten(1).sum(1) > 0
    return torch.where(counted, values, 0).sum() / counted.sum().clamp(min=1)
