"""SimSiam's loss between whole images."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor

from twinview.branch import Head, ParamRule
from twinview.hooks import hookimpl, part
from twinview.ops import cosine_loss, mlp, soft_cross_entropy_loss
from twinview.values import Dims, Step, Traits


@part
class Image:
    """D(p, sg z) between one view's prediction and the other's projection, over all ordered pairs (SimSiam, eq. 1 to 4).

    D is minus the cosine, or the cross-entropy of softmaxes (section 4.5).
    """

    channels: int = field(default=2048, validator=gt(0))  # width of the projection
    hidden: int = field(default=0, validator=ge(0))  # width of the projector's two hidden layers; 0: that of the projection
    predictor_hidden: int = field(default=512, validator=gt(0))  # width of the predictor's hidden layer
    similarity: Literal["cosine", "cross_entropy"] = "cosine"  # of what is predicted and what is asked
    constant_predictor_lr: bool = True  # the predictor's learning rate stays at its peak (section 4.2)

    @hookimpl
    def traits(self) -> Traits:
        """Needs the pooled features."""
        return Traits(needs=frozenset({"pooled", "pairs"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`projector`, three layers with a BatchNorm behind the last; `predictor`, two layers, online only."""
        rule = ParamRule(schedule="constant") if self.constant_predictor_lr else None
        return {
            "projector": Head(mlp(dims.width("pooled"), self.hidden or self.channels, self.channels, layers=3, last_norm=True)),
            "predictor": Head(mlp(self.channels, self.predictor_hidden, self.channels), "online_only", rule),
        }

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`image`: mean over the ordered pairs; in [-1, 1] for the cosine, in nats for the cross-entropy."""
        projector, predictor = step.head(self, "projector"), step.head(self, "predictor")
        compare = cosine_loss if self.similarity == "cosine" else soft_cross_entropy_loss
        terms = []
        for online, target in step.pairs:
            prediction = step.apply((projector, predictor), online, "online", on="pooled")
            terms.append(compare(prediction, step.apply(projector, target, "target", on="pooled")))
        return {"image": torch.stack(terms).mean()}
