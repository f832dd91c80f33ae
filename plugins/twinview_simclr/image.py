"""SimCLR's loss between whole images."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import nn

from twinview.hooks import hookimpl, part
from twinview.ops import mlp, nt_xent
from twinview.values import Dims, Head, Step, Traits

START = 0.01  # deviation of the projector's weights at the start


@part
class Image:
    """NT-Xent: each view finds its image's other view among both views of all images of the batch, on all ranks (SimCLR, eq. 1).

    The projector takes the views in one pass, so that its BatchNorms see both; [run] views_together does the same for the encoder.
    """

    channels: int = field(default=128, validator=gt(0))  # width of the projection
    hidden: int = field(default=0, validator=ge(0))  # width of the projector's hidden layers; 0: that of the features
    layers: int = field(default=3, validator=ge(1))  # of the projector: 3 as released (SimCLR v2), 2 in the first paper
    temperature: float = field(default=0.1, validator=gt(0))  # of the softmax over cosines

    @hookimpl
    def traits(self) -> Traits:
        """Needs the pooled features, and paired views."""
        return Traits(needs=frozenset({"pooled", "pairs"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`projector`: a BatchNorm behind every layer, the last with a gain and no offset; weights start as N(0, 0.01^2)."""
        width = dims.width("pooled")
        projector = mlp(width, self.hidden or width, self.channels, layers=self.layers, last_norm="gain")
        for layer in projector:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=START)
        return {"projector": Head(projector)}

    @hookimpl
    def loss(self, step: Step) -> dict[str, torch.Tensor]:
        """`image`, nats: the mean over rows and over the unordered pairs of views.  The release sums the two rows of an image: weight 2."""
        pairs = sorted({(min(pair), max(pair)) for pair in step.pairs})
        views = sorted({view for pair in pairs for view in pair})
        projector = step.branches.online.of(self, "projector")
        projections = projector(torch.cat([step.online[view].at("pooled") for view in views])).chunk(len(views))
        z = dict(zip(views, projections, strict=True))
        return {"image": torch.stack([nt_xent(z[a], z[b], self.temperature).mean() for a, b in pairs]).mean()}
