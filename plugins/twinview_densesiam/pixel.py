"""Pixel consistency: each online cell predicts what its own place is in the other view."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor

from twinview.branch import Head, ParamRule
from twinview.hooks import hookimpl, part
from twinview.ops import conv_mlp, cosine_loss, soft_cross_entropy_loss
from twinview.ops.cross_entropy import balanced_weights
from twinview.values import Alignment, Dims, Step, Traits
from twinview_densesiam.projector import refuse_own


@part
class Pixel:
    """DenseSiam's pixel loss over all ordered pairs of views: minus the cosine of projections, or the cross-entropy of soft clusters.

    cosine: -<p, sg z> of unit vectors at the same place (pre-training, SimSiam on cells); cross_entropy: D(p, z) = -softmax(sg z) . log softmax(p)
    (segmentation, as released).  An auxiliary head with more clusters has the same loss; its weight and the main one's are set so that both
    losses are equal where all clusters are equally likely.
    """

    align: str = ""  # the recipe's alignment by name, for a recipe that has several
    head: str = ""  # a shared [[head]] in place of its own projector
    similarity: Literal["cosine", "cross_entropy"] = "cosine"  # of what is predicted and what is asked, as above
    channels: int = field(default=2048, validator=gt(0))  # of its own projector
    hidden: int = field(default=0, validator=ge(0))  # width of the projectors' hidden layers; 0: that of the cells
    predictor_hidden: int = field(default=512, validator=gt(0))  # width of the predictor's hidden layer
    auxiliary: int = field(default=0, validator=ge(0))  # clusters of a second projector and predictor; 0: none
    constant_predictor_lr: bool = False  # the predictor's learning rate stays at its peak (SimSiam)

    def __attrs_post_init__(self) -> None:
        if self.head:
            refuse_own(self, "channels", *([] if self.auxiliary else ["hidden"]))
        if self.auxiliary == 1 or (self.auxiliary and self.similarity == "cosine"):
            raise ValueError('auxiliary counts clusters, two or more, and goes with similarity = "cross_entropy"')

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells and an alignment."""
        return Traits(needs=frozenset({"cells", "pairs", "alignment"}))

    @hookimpl
    def aligned_widths(self, dims: Dims) -> tuple[int, ...]:
        """Predictions and projections are aligned."""
        return (self._width(dims), *([self.auxiliary] if self.auxiliary else []))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`predictor`, and its own `projector` where none is shared; `auxiliary_projector` and `auxiliary_predictor`."""
        found = self._pair(dims, self._width(dims), "")
        if self.head:
            del found["projector"]
        return found | (self._pair(dims, self.auxiliary, "auxiliary_") if self.auxiliary else {})

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`pixel`, mean over pairs and cells; with an auxiliary head that too as `auxiliary`, both times their automatic weight."""
        shared = step.head(self.head, "projector") if self.head else step.head(self, "projector")
        found = self._term(step, shared, step.head(self, "predictor"))
        if not self.auxiliary:
            return {"pixel": found}
        main, other = balanced_weights(step.apply(shared, step.pairs[0][0], "online").shape[1], self.auxiliary)
        extra = self._term(step, step.head(self, "auxiliary_projector"), step.head(self, "auxiliary_predictor"))
        return {"pixel": main * found, "auxiliary": other * extra}

    def _term(self, step: Step, projector: str, predictor: str) -> Tensor:
        compare: Callable[[Tensor, Tensor, Tensor], Tensor] = cosine_loss if self.similarity == "cosine" else soft_cross_entropy_loss
        terms = []
        for online, target in step.pairs:
            alignment: Alignment = step.alignment(online, target, self.align)
            prediction = alignment.online(step.apply((projector, predictor), online, "online"))
            terms.append(compare(prediction, alignment.target(step.apply(projector, target, "target")), alignment.weight))
        return torch.stack(terms).mean()

    def _width(self, dims: Dims) -> int:
        return dims.heads[self.head] if self.head else self.channels

    def _pair(self, dims: Dims, channels: int, name: str) -> dict[str, Head]:
        width = dims.width("cells")
        rule = ParamRule(schedule="constant") if self.constant_predictor_lr else None
        return {
            f"{name}projector": Head(conv_mlp(width, self.hidden or width, channels, layers=3, last_norm=True)),
            f"{name}predictor": Head(conv_mlp(channels, self.predictor_hidden, channels), "online_only", rule),
        }
