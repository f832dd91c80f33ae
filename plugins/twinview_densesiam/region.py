"""Region consistency: the soft regions of the overlap, contrasted with the other regions of their own image."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor

from twinview.branch import Head
from twinview.hooks import hookimpl, part
from twinview.ops import conv_mlp, info_nce, mlp
from twinview.ops.checks import share
from twinview.ops.maps import seen_twice
from twinview.ops.means import weighted_mean, wide
from twinview.values import Dims, Role, Step, Traits
from twinview_densesiam.projector import refuse_own


@part
class Region:
    """DenseSiam's region loss: InfoNCE between the regions of two views of an image, the image's other regions as negatives.

    A region is the sum of the cells' features by a soft mask, c_k = sum m_k f with m = softmax(z); q = projector(c), s = predictor(q);
    L = -1/2 mean_k [log softmax(<s1, q2> / tau)_kk + log softmax(<s2, q1> / tau)_kk].  As released, gradient reaches both views, masks and
    features.
    """

    align: str = ""  # the recipe's alignment by name, for a recipe that has several
    head: str = ""  # a shared [[head]] whose softmax is the masks, in place of its own
    regions: int = field(default=27, validator=gt(1))  # K, of its own masks
    hidden: int = field(default=0, validator=ge(0))  # width of the hidden layers; 0: that of the cells
    temperature: float = field(default=0.1, validator=gt(0))  # tau
    stop_gradient: bool = False  # q comes from the target branch, as in the paper's other losses
    start: float = field(default=0.0, validator=share)  # share of the run before which the term counts for nothing

    def __attrs_post_init__(self) -> None:
        if self.head:
            refuse_own(self, "regions")

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells and an alignment."""
        return Traits(needs=frozenset({"cells", "pairs", "alignment"}))

    @hookimpl
    def aligned_widths(self, dims: Dims) -> tuple[int, ...]:
        """Cells and masks are aligned."""
        return (dims.width("cells"), dims.heads[self.head] if self.head else self.regions)

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`projector` and `predictor` of regions, and `masks` where none are shared."""
        width = dims.width("cells")
        hidden = self.hidden or width
        masks = {} if self.head else {"masks": Head(conv_mlp(width, hidden, self.regions, layers=3, last_norm=True))}
        return masks | {
            "projector": Head(mlp(width, hidden, width, layers=3, last_norm=True)),
            "predictor": Head(mlp(width, hidden, width), "online_only"),
        }

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`region`; 0 before `start`, but its layers run, so that their statistics are there when it begins.  Notes `region/raw`."""
        terms = []
        for online, target in step.pairs:
            if (target, online) not in step.pairs:
                terms += self._pair(step, online, target, [(online, target)])
            elif online < target:  # its regions serve both directions
                terms += self._pair(step, online, target, [(online, target), (target, online)])
        raw = torch.stack(terms).mean()
        step.note("region/raw", raw)
        return {"region": raw * float(step.progress.share >= self.start)}

    def _pair(self, step: Step, online: int, target: int, directions: list[tuple[int, int]]) -> list[Tensor]:
        """A scalar for each direction (from, to) between two views."""
        alignment = step.alignment(online, target, self.align)
        operators = {online: alignment.online, target: alignment.target}
        symmetric = len(directions) == 2 or not self.stop_gradient  # `target` goes through the online branch too
        weight = seen_twice(step, alignment, target) if symmetric else alignment.weight
        meet = (weight.flatten(1).sum(1) > 0).nonzero()[:, 0]  # the other images have no regions
        made: dict[tuple[int, Role], Tensor] = {}

        def projected(view: int, role: Role) -> Tensor:
            if (view, role) not in made:
                made[view, role] = self._project(step, view, role, operators[view], weight, meet)
            return made[view, role]

        terms = []
        for start, end in directions:
            regions = projected(start, "online")
            goal = self._stopped(step, end, projected) if self.stop_gradient else projected(end, "online")
            predicted = step.branches.online.of(self, "predictor")(regions.flatten(0, 1)).view(*regions.shape)
            found = info_nce(predicted, goal, self.temperature)
            terms.append(weighted_mean(found, torch.ones_like(found)))  # 0 where no image's views meet
        return terms

    def _project(self, step: Step, view: int, role: Role, operator: Callable[[Tensor], Tensor], weight: Tensor, meet: Tensor) -> Tensor:
        """q [N, K, C] of a view's N images `meet` whose views meet; BatchNorm sees the N * K rows of one view at a time.

        The sums of images whose views do not meet are 0: with them in its statistics they would move the others' loss.
        """
        masks = step.apply(step.head(self.head, "projector") if self.head else step.head(self, "masks"), view, role)
        cells = (step.online if role == "online" else step.target)[view].at("cells")
        branch = step.branches.online if role == "online" else step.branches.target
        sums = region_sums(operator(cells), operator(masks), weight)[meet]
        projected: Tensor = branch.of(self, "projector")(sums.flatten(0, 1))
        return projected.view(*sums.shape)

    @staticmethod
    def _stopped(step: Step, view: int, projected: Callable[[int, Role], Tensor]) -> Tensor:
        """q of the target branch; where that is the online branch itself, its result without gradient, not a second forward."""
        if step.branches.target is step.branches.online:
            return projected(view, "online").detach()
        with torch.no_grad():
            return projected(view, "target")


def region_sums(features: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """c [B, K, C]: sums of features [B, C, h, w] by softmax over K of masks [B, K, h, w], cells counted by `weight` [B, h, w]."""
    with torch.autocast(features.device.type, enabled=False):
        shares = wide(masks).softmax(1) * weight[:, None].to(wide(masks).dtype)
        return torch.bmm(shares.flatten(2), wide(features).flatten(2).mT)
