"""MoCo's loss between whole images."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor

from twinview.hooks import hookimpl, part
from twinview.ops import Queue, check_queue, info_nce_queue, mlp
from twinview.values import Dims, Head, Progress, Step, Traits


@part
class Image:
    """InfoNCE between one view's query, the other view's averaged key, and the keys of earlier batches (MoCo, eq. 1).

    The defaults are MoCo v2's; v1 has projector = "linear" and temperature = 0.07.  Both take view 1 as query and view 2 as key alone:
    `pairs = "one_way"` of the views.
    """

    projector: Literal["mlp", "linear"] = "mlp"  # two layers without norm (v2), or one (v1)
    hidden: int = field(default=0, validator=ge(0))  # width of its hidden layer; 0: that of the features
    channels: int = field(default=128, validator=gt(0))  # width of queries and keys
    queue: int = field(default=65536, validator=gt(0))  # keys of earlier batches, of all ranks together
    temperature: float = field(default=0.2, validator=gt(0))

    @hookimpl
    def traits(self) -> Traits:
        """Needs the pooled features, and paired views."""
        return Traits(needs=frozenset({"pooled", "pairs"}))

    @hookimpl
    def check(self, dims: Dims) -> None:
        """A queue holds at least a batch and at most an epoch of keys."""
        check_queue(self.queue, dims, "[[loss]] moco.image", keys=len({target for _, target in dims.pairs}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The averaged `projector`, and the `queue`, kept once."""
        width = dims.width("pooled")
        projector = mlp(width, self.hidden or width, self.channels, layers=2 if self.projector == "mlp" else 1, norm=False)
        return {"projector": Head(projector), "queue": Head(Queue(self.queue, self.channels), "state")}

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`image`, nats: the mean over the ordered pairs (query view, key view)."""
        projector, negatives = step.head(self, "projector"), step.branches.online.of(self, "queue").negatives()
        terms = []
        for i, j in step.pairs:
            query, key = step.apply(projector, i, "online", on="pooled"), step.apply(projector, j, "target", on="pooled")
            terms.append(info_nce_queue(query, key, negatives, self.temperature).mean())
        return {"image": torch.stack(terms).mean()}

    @hookimpl
    def after_micro_batch(self, step: Step, progress: Progress) -> None:
        """Holds the keys, those of one view behind those of another."""
        projector, views = step.head(self, "projector"), sorted({target for _, target in step.pairs})
        keys = torch.cat([step.apply(projector, view, "target", on="pooled") for view in views])
        step.branches.online.of(self, "queue").hold(keys, progress.micro)

    @hookimpl
    def after_step(self, step: Step) -> None:
        """They take the place of the oldest."""
        step.branches.online.of(self, "queue").commit()
