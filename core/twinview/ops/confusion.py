"""Truth against prediction, and the scores that are read off it."""
from __future__ import annotations

import torch
from torch import Tensor

from twinview.ops.ranks import summed


class Confusion:
    """Counts [n, m] of places of each true class (row) that were given each class or cluster (column)."""

    def __init__(self, n: int, device: torch.device | None = None, given: int | None = None) -> None:
        """`given`: m, where it is not n."""
        self.counts = torch.zeros(n, given or n, dtype=torch.int64, device=device)

    def add(self, truth: Tensor, given: Tensor) -> None:
        """Count places: two tensors of one shape, classes 0 to n - 1 and 0 to m - 1."""
        n, m = self.counts.shape
        self.counts += torch.bincount(truth.flatten() * m + given.flatten(), minlength=n * m).view(n, m)

    def gather(self) -> None:
        """Add up the counts of all ranks; every rank then has the same scores."""
        summed(self.counts)

    def iou(self) -> Tensor:
        """[n]: intersection over union of each class, 0 to 1; NaN for a class that is neither there nor given."""
        hit = self.counts.diagonal()
        return hit / (self.counts.sum(0) + self.counts.sum(1) - hit)

    def miou(self) -> float:
        """Mean of `iou` over the classes that are there or given; NaN where nothing was counted."""
        return self.iou().nanmean().item()

    def accuracy(self) -> float:
        """Share of places given their true class; NaN where nothing was counted."""
        return (self.counts.diagonal().sum() / self.counts.sum()).item()
