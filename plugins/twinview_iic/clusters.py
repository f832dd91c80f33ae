"""Heads that give each cell a share of every cluster."""
from __future__ import annotations

from collections.abc import Mapping

from attrs import field
from attrs.validators import ge, gt
from torch import nn

from twinview.branch import Head, ParamRule
from twinview.hooks import hookimpl, part
from twinview.values import Dims, Traits


@part
class Clusters:
    """One 1x1 convolution without bias from cells to K clusters; a pixel's cluster is its largest channel.

    A `[[head]]` that a loss and `probes.cluster` share by its name.
    """

    clusters: int = field(default=15, validator=gt(1))  # K
    frozen_until: int = field(default=0, validator=ge(0))  # epochs before its loss has its first turn: the optimizer begins with it then

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells; gives maps of K channels."""
        return Traits(needs=frozenset({"cells"}), channels=self.clusters)

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`projector`."""
        return {"projector": Head(cluster_head(dims.width("cells"), self.clusters), rule=ParamRule(frozen_until=self.frozen_until))}


def cluster_head(channels: int, clusters: int) -> nn.Conv2d:
    """Logits [B, channels, h, w] -> [B, clusters, h, w], Kaiming-normal by fan-in."""
    head = nn.Conv2d(channels, clusters, 1, bias=False)
    nn.init.kaiming_normal_(head.weight)
    return head
