"""The head that losses and the evaluation share."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field
from attrs.validators import ge, gt

from twinview.branch import Head
from twinview.hooks import hookimpl, part
from twinview.ops import conv_mlp
from twinview.values import Dims, Traits


def refuse_own(part: Any, *names: str) -> None:
    """ValueError where a loss that shares a head also sets an option of the projector that it then does not have."""
    for option in attrs.fields(type(part)):
        if option.name in names and getattr(part, option.name) != option.default:
            raise ValueError(f"{option.name} is of its own projector; leave it out where head names a shared one")


@part
class Projector:
    """Three 1x1 convolutions from cells to clusters, BatchNorm without affine parameters at the end: a pixel's cluster is its largest channel.

    A `[[head]]`; losses and `probes.cluster` share it by its name.  The last norm standardizes each cluster over the batch, which keeps one
    cluster from taking everything.
    """

    clusters: int = field(default=27, validator=gt(1))  # K
    hidden: int = field(default=0, validator=ge(0))  # width of both hidden layers; 0: that of the cells

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells; gives maps of K channels."""
        return Traits(needs=frozenset({"cells"}), channels=self.clusters)

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`projector`, averaged in the target."""
        width = dims.width("cells")
        return {"projector": Head(conv_mlp(width, self.hidden or width, self.clusters, layers=3, last_norm=True))}
