"""Swapped prediction: one view says which prototypes another view was assigned to (SwAV, section 3.1)."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.branch import Branch, Branches
from twinview.hooks import hookimpl, part
from twinview.ops import Queue, check_queue, mlp, sinkhorn
from twinview.ops.ranks import rank, world
from twinview.values import Dims, Head, ParamRule, Role, Step, Traits


def _whole(_: object, attribute: object, value: float) -> None:
    if not float(value).is_integer():
        raise ValueError(f"queue_start counts whole epochs, not {value}")


@part
class Prototypes:
    """Cross-entropy between softmax(z_i . c / tau) of one view and the codes of another, over all ordered pairs of views (SwAV, eq. 1 and 2).

    Codes are the Sinkhorn assignments of the target views' scores, which use all prototypes alike over the samples of all ranks.  Published with
    [target] momentum = 0: codes come from the same network, without gradient.
    """

    hidden: int = field(default=2048, validator=gt(0))  # width of the projector's hidden layer
    channels: int = field(default=128, validator=gt(0))  # width of the projections z
    prototypes: int = field(default=3000, validator=gt(1))  # K
    temperature: float = field(default=0.1, validator=gt(0))  # tau
    epsilon: float = field(default=0.05, validator=gt(0))  # of the assignment: smaller is harder
    iterations: int = field(default=3, validator=ge(1))  # of Sinkhorn-Knopp
    queue: int = field(default=0, validator=ge(0))  # earlier projections of each target view that join the assignment, for small batches; 0: none
    queue_start: float = field(default=15.0, validator=[ge(0), _whole])  # epochs before they do
    frozen: int = field(default=1, validator=ge(0))  # epochs before the prototypes move

    @hookimpl
    def traits(self) -> Traits:
        """Needs the pooled features, and paired views."""
        return Traits(needs=frozenset({"pooled", "pairs"}))

    @hookimpl
    def check(self, dims: Dims) -> None:
        """A queue holds at least a batch and at most an epoch of keys."""
        if self.queue:
            check_queue(self.queue, dims, "[[loss]] swav.prototypes")

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The averaged `projector` and `prototypes`, and a queue for each target view."""
        found = {
            "projector": Head(mlp(dims.width("pooled"), self.hidden, self.channels)),
            "prototypes": Head(nn.Linear(self.channels, self.prototypes, bias=False), rule=ParamRule(frozen_until=self.frozen)),
        }
        return found | {f"queue{view}": Head(Queue(self.queue, self.channels), "state") for view in self._targets(dims.pairs) if self.queue}

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`prototypes`, nats: at most log K at the start.  Notes `prototypes/used`, the share of prototypes that are the first of a code."""
        views, targets = sorted({view for pair in step.pairs for view in pair}), self._targets(step.pairs)
        z = self._project(step, views, "online")
        scores = {view: cosines(step.branches.online, self, rows) for view, rows in z.items()}
        alone = step.branches.target is step.branches.online
        others = {view: z[view].detach() for view in targets} if alone else self._project(step, targets, "target")
        codes = {view: self._codes(step, view, rows) for view, rows in others.items()}
        if step.watch:
            first = torch.cat([code.argmax(1) for code in codes.values()])
            step.note("prototypes/used", first.new_zeros(self.prototypes, dtype=torch.float32).index_fill_(0, first, 1).mean())
        terms = [-(codes[j] * (scores[i] / self.temperature).log_softmax(1)).sum(1).mean() for i, j in step.pairs]
        return {"prototypes": torch.stack(terms).mean()}

    @hookimpl
    def after_step(self, branches: Branches, step: Step) -> None:
        """This batch's target projections take the place of the oldest."""
        for view in self._targets(step.pairs) if self.queue else ():
            branches.online.of(self, f"queue{view}").commit()

    def _codes(self, step: Step, view: int, rows: Tensor) -> Tensor:
        """[B, K] of target projections [B, channels]; earlier ones, a share of them on each rank, take part in the assignment and are dropped."""
        every = rows
        if self.queue:
            queue = step.branches.online.of(self, f"queue{view}")
            if step.progress.epoch >= self.queue_start:
                every = torch.cat([rows, queue.negatives()[rank() :: world()].to(rows.dtype)])
            queue.hold(rows, step.progress.micro)
        with torch.no_grad():
            return sinkhorn(cosines(step.branches.target, self, every), self.epsilon, self.iterations)[: len(rows)]

    def _project(self, step: Step, views: list[int], role: Role) -> dict[int, Tensor]:
        """Projections [B, channels] by view; all go through the projector, and its BatchNorm, in one pass, as released."""
        branch, features = (step.branches.online, step.online) if role == "online" else (step.branches.target, step.target)
        with torch.set_grad_enabled(torch.is_grad_enabled() and role == "online"):
            every = branch.of(self, "projector")(torch.cat([features[view].at("pooled") for view in views]))
        return dict(zip(views, every.chunk(len(views))))

    @staticmethod
    def _targets(pairs: tuple[tuple[int, int], ...]) -> list[int]:
        return sorted({target for _, target in pairs})


def cosines(branch: Branch, part: Prototypes, rows: Tensor) -> Tensor:
    """[n, K]: cosines of rows [n, channels] with the prototypes, which are directions: their length counts for nothing."""
    with torch.autocast(rows.device.type, enabled=False):
        weight = branch.of(part, "prototypes").weight
        return F.normalize(rows.to(weight.dtype), dim=1) @ F.normalize(weight, dim=1).mT
