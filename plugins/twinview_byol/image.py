"""BYOL's loss between whole images."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import field
from attrs.validators import gt
from torch import Tensor

from twinview.branch import Head
from twinview.hooks import hookimpl, part
from twinview.ops import cosine_loss, mlp
from twinview.values import Dims, Step, Traits


@part
class Image:
    """Minus the cosine between one view's prediction and the other's target projection (BYOL, eq. 2: 2 - 2 cos, shifted and halved).

    The projector g sits on the pooled features of both branches, the predictor q on the online branch alone.
    """

    hidden: int = field(default=4096, validator=gt(0))  # width of the one hidden layer of projector and predictor
    channels: int = field(default=256, validator=gt(0))  # width of the projection
    last_bias: bool = True  # of the last layers of projector and predictor; the release has none

    @hookimpl
    def traits(self) -> Traits:
        """Needs the pooled features."""
        return Traits(needs=frozenset({"pooled", "pairs"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The averaged `projector` and the online `predictor`."""
        return {
            "projector": Head(mlp(dims.width("pooled"), self.hidden, self.channels, last_bias=self.last_bias)),
            "predictor": Head(mlp(self.channels, self.hidden, self.channels, last_bias=self.last_bias), "online_only"),
        }

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`image`: mean over the ordered pairs (i, j) of -cos(q(g(f_i)), sg[g'(f'_j)]), in [-1, 1]."""
        projector, predictor = step.head(self, "projector"), step.head(self, "predictor")
        terms = []
        for i, j in step.pairs:
            prediction = step.apply((projector, predictor), i, "online", on="pooled")
            projection = step.apply((projector,), j, "target", on="pooled")
            terms.append(cosine_loss(prediction, projection))
        return {"image": torch.stack(terms).mean()}
