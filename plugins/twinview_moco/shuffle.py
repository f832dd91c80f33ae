"""Shuffled BatchNorm."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from twinview.branch import Branch
from twinview.hooks import hookimpl, part
from twinview.ops.ranks import gather_rows, gather_with_place
from twinview.values import Features, Role


@part
class Shuffle:
    """Each rank encodes keys of images from all ranks, in a random order, and hands the features back (MoCo, section 3.3).

    With [run] sync_batchnorm = false a query and its key would share a BatchNorm with the same images, which tells them apart from all others.
    Synchronized BatchNorm, the default, closes the same leak, and then this changes nothing; on one rank it changes nothing either.
    """

    @hookimpl
    def encode(
        self, branch: Branch, images: Tensor, hidden: Tensor | None, views: tuple[int, ...], role: Role, rng: np.random.Generator
    ) -> Features | None:
        """The target's features, of any number of views at once; the online branch is left to the core."""
        if role == "online":
            return None
        every, first = gather_with_place(images)
        order = torch.from_numpy(rng.permutation(len(every))).to(images.device)
        own = slice(first, first + len(images))
        masks = None if hidden is None else gather_rows(hidden)[order[own]]
        features: Features = branch.encoder(every[order[own]], masks)

        def put_back(value: Tensor) -> Tensor:
            shuffled = gather_rows(value.detach())
            return torch.empty_like(shuffled).index_copy_(0, order, shuffled)[own]

        return features.each(put_back)
