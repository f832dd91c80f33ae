"""Alignment and uniformity on the sphere (Wang and Isola 2020, arXiv 2005.10242, eq. 3 and 4)."""
from __future__ import annotations

import itertools

import torch
from attrs import field
from attrs.validators import ge
from torch.nn import functional as F

from twinview import Branches, hookimpl, part
from twinview.ops import gather_rows
from twinview.values import DataFactory, Progress, Traits


@part
class Sphere:
    """How near two views of an image lie, and how evenly all images; of pooled features of unit length, without labels."""

    batches: int = field(default=8, validator=ge(1))  # of views that are looked at

    @hookimpl
    def traits(self) -> Traits:
        """Its scores: both are better where they are lower."""
        return Traits(needs=frozenset({"pooled", "pairs"}), scores=frozenset({"alignment", "uniformity"}))

    @hookimpl
    def evaluate(self, branches: Branches, data: DataFactory, progress: Progress) -> dict[str, float]:
        """`alignment`, the mean squared distance of two views; `uniformity`, the log of the mean of exp(-2 d^2) over pairs of images."""
        views: list[list[torch.Tensor]] = [[], []]
        for batch in itertools.islice(data.views(progress.epoch), self.batches):
            for number, rows in enumerate(views):
                rows.append(F.normalize(data.features(branches.online, batch, number).at("pooled").float(), dim=1))
        one, other = (gather_rows(torch.cat(rows)) for rows in views)
        near = (one - other).square().sum(1).mean()
        even = torch.pdist(one).square().mul(-2).exp().mean().log()
        return {"alignment": float(near), "uniformity": float(even)}
