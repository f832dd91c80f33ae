"""The ceiling and the floor of a table: training with labels, and no training."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import field
from attrs.validators import ge, lt
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.branch import Head
from twinview.hooks import hookimpl, part
from twinview.ops.means import wide
from twinview.values import Dims, Step, Traits


@part
class Classes:
    """Cross-entropy of a linear classifier on the pooled features, with the class labels of the shards; every view counts alike."""

    smoothing: float = field(default=0.0, validator=[ge(0), lt(1)])  # share of the target that all classes have alike (Szegedy et al. 2016)

    @hookimpl
    def traits(self) -> Traits:
        """Needs pooled features and labels."""
        return Traits(needs=frozenset({"pooled", "labels"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The online-only `classifier`."""
        return {"classifier": Head(nn.Linear(dims.width("pooled"), max(dims.classes, 1)), "online_only")}

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`classes`, in nats; notes the accuracy on the batch."""
        labels, head = step.batch.labels["class"], step.head(self, "classifier")
        found, right = [], []
        for view in range(len(step.batch.images)):
            logits = wide(step.apply(head, view, "online", on="pooled"))
            truth = labels.to(logits.device)
            found.append(F.cross_entropy(logits, truth, label_smoothing=self.smoothing))
            right.append((logits.argmax(1) == truth).float())
        step.note("classes/accuracy", torch.stack(right))
        return {"classes": torch.stack(found).mean()}


@part
class Nothing:
    """A loss of 0, whose gradient is 0 everywhere: nothing moves, and a run's evaluations score the random start, or the weights that it began with.

    Write weight_decay = 0 with it.  No view is looked at, so BatchNorm's statistics stay as they are too.
    """

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`nothing`, which is 0."""
        whole = [p for p in step.branches.online.parameters() if p.requires_grad and p.numel()]  # under ZeRO 3 most are not here
        return {"nothing": sum((p.sum() * 0 for p in whole), torch.zeros((), device=step.pixels[0].device, requires_grad=True))}


@hookimpl
def parts() -> dict[str, type]:
    """`supervised.classes` and `supervised.nothing`."""
    return {"classes": Classes, "nothing": Nothing}
