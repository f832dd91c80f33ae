"""Clusters without names against classes: the Hungarian matching, and what is read off it."""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def match_clusters(counts: Tensor) -> Tensor:
    """Counts [n, k] of pixels by class and cluster -> [n]: the cluster of each class, -1 where clusters have run out.

    One to one, so that the most pixels fall into the cluster of their class (Kuhn 1955).
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts.cpu().numpy(), maximize=True)
    found = torch.full((len(counts),), -1)
    found[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return found


def matched_counts(counts: Tensor, match: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each class, as float64 [n]: hits, pixels of the class, pixels of its cluster (0 where it has none)."""
    full = counts.double().cpu()
    there = match >= 0
    column = match.clamp(min=0)
    hits = torch.where(there, full[torch.arange(len(full)), column], 0)
    return hits, full.sum(1), torch.where(there, full.sum(0)[column], 0)


def matched_scores(counts: Tensor, match: Tensor, things: Sequence[int] = ()) -> dict[str, float]:
    """Percent, in the order of classes: `miou`, `accuracy`, `mean_accuracy`, and where `things` are known the mIoU of `things` and `stuff`.

    Means are over classes that occur or whose cluster was given; pixels in clusters without a class are missed, and no class's false ones.
    """
    hits, truth, given = matched_counts(counts, match)
    iou = hits / (truth + given - hits)
    scores = {"miou": iou.nanmean(), "accuracy": hits.sum() / truth.sum(), "mean_accuracy": (hits / truth).nanmean()}
    if things:
        kind = torch.zeros(len(iou), dtype=torch.bool)
        kind[list(things)] = True
        scores |= {"things": iou[kind].nanmean(), "stuff": iou[~kind].nanmean()}
    return {name: 100 * float(score) for name, score in scores.items()}


def occupancy(counts: Tensor) -> dict[str, float]:
    """How pixels fall on clusters: `entropy` (1: all as large, 0: one holds all), `empty` clusters, and `collapsed`, 1 where fewer than two are left.

    The number that are left is the exponential of the entropy.
    """
    sizes = counts.double().sum(0)
    nats = float(torch.special.entr(sizes / sizes.sum()).sum())
    return {"entropy": nats / math.log(len(sizes)), "empty": float((sizes == 0).sum()), "collapsed": float(math.exp(nats) < 2)}
