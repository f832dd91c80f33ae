"""PixPro's optional branch: the agreement of whole images, projected cell by cell and averaged afterwards."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import field
from attrs.validators import ge
from torch import Tensor

from twinview.hooks import hookimpl, part
from twinview.ops import conv_mlp, cosine_loss
from twinview.values import Dims, Head, Step, Traits


@part
class Instance:
    """Minus the cosine of image-level predictions, averaged over all ordered pairs of views (PixPro, section 3.3).

    Projector and predictor are 1x1 convolutions with BatchNorm on the map, averaged over it at the end; `byol.image` averages first.
    The released loss of two views is four times this one.
    """

    hidden: int = field(default=4096, validator=ge(1))  # width of the one hidden layer of projector and predictor
    channels: int = field(default=256, validator=ge(1))  # width of the projection

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells, and paired views."""
        return Traits(needs=frozenset({"cells", "pairs"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The averaged `projector` and the online `predictor`."""
        return {
            "projector": Head(conv_mlp(dims.width("cells"), self.hidden, self.channels)),
            "predictor": Head(conv_mlp(self.channels, self.hidden, self.channels), "online_only"),
        }

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`instance`, in [-1, 1]."""
        projector, predictor = step.head(self, "projector"), step.head(self, "predictor")
        targets = {view: step.apply(projector, view, "target").mean((2, 3)) for view in sorted({j for _, j in step.pairs})}
        terms = []
        for online, target in step.pairs:
            prediction = step.apply((projector, predictor), online, "online").mean((2, 3))
            terms.append(cosine_loss(prediction, targets[target]))
        return {"instance": torch.stack(terms).mean()}
