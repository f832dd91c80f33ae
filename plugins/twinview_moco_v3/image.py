"""MoCo v3's loss between whole images."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor

from twinview.hooks import hookimpl, part
from twinview.ops import info_nce_batch, mlp
from twinview.values import Dims, Head, Step, Traits


@part
class Image:
    """InfoNCE between one view's prediction and the other's averaged keys, those of all images and all ranks (MoCo v3, algorithm 1).

    The defaults are the ResNet's; vision transformers have projector_layers = 3, predictor_norm = true and temperature = 0.2.
    """

    channels: int = field(default=256, validator=gt(0))  # width of queries and keys
    hidden: int = field(default=4096, validator=gt(0))  # width of the hidden layers of projector and predictor
    projector_layers: int = field(default=2, validator=ge(1))  # with a BatchNorm without affine parameters behind the last
    predictor_norm: bool = False  # a BatchNorm without affine parameters behind the predictor too
    temperature: float = field(default=1.0, validator=gt(0))

    @hookimpl
    def traits(self) -> Traits:
        """Needs the pooled features, and paired views."""
        return Traits(needs=frozenset({"pooled", "pairs"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The averaged `projector` and the online `predictor` of two layers; no layer has a bias of its own."""
        projector = mlp(dims.width("pooled"), self.hidden, self.channels, layers=self.projector_layers, last_norm=True)
        predictor = mlp(self.channels, self.hidden, self.channels, last_norm=self.predictor_norm, last_bias=False)
        return {"projector": Head(projector), "predictor": Head(predictor, "online_only")}

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`image`: 2 tau times InfoNCE in nats, the mean over the ordered pairs.  The release sums the two directions: weight 2."""
        projector, predictor = step.head(self, "projector"), step.head(self, "predictor")
        keys = {j: step.apply(projector, j, "target", on="pooled").detach() for j in sorted({j for _, j in step.pairs})}
        terms = []
        for i, j in step.pairs:
            query = step.apply((projector, predictor), i, "online", on="pooled")
            terms.append(2 * self.temperature * info_nce_batch(query, keys[j], self.temperature).mean())
        return {"image": torch.stack(terms).mean()}
