"""The dense loss: predictions meet the target's cells, and are kept from the directions that all targets share."""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.hooks import hookimpl, part
from twinview.ops.means import weighted_mean, wide
from twinview.ops.ranks import summed
from twinview.ops.transformer import to_map
from twinview.values import Alignment, Dims, Head, ParamRule, Role, Step, Traits
from twinview_siameseim.network import Norm, Projector


@part
class Dense:
    """L = (mean |q - t|^2 + lambda mean q^T C q) / D over the cells of a pair of views; t layer-normalized, C = mean t t^T over all ranks.

    q are the aligned online projections, t the aligned target ones.  lambda's strength goes with lambda D: published 0.02 at D = 768, which is
    0.04 at 384.  A loss that rests at lambda D / (1 + lambda D) is collapse, one at 1 is q = 0.
    """

    align: str = ""  # the recipe's alignment by name, for a recipe that has several
    channels: int = field(default=768, validator=ge(1))  # D, width of the projector
    projector_depth: int = field(default=2, validator=ge(0))  # blocks of the projector
    attention_heads: int = field(default=16, validator=ge(1))  # of the projector
    mlp_ratio: float = field(default=4.0, validator=gt(0))  # width of a block's hidden layer : D
    norm: Norm = "batch"  # of the projector; batch: over batch x tokens; or layer
    negative_weight: float = field(default=0.02, validator=ge(0))  # lambda
    online_ln: bool = False  # predictions are layer-normalized too, with gain and bias that stay at 1 and 0 (the released switch of this name)

    def __attrs_post_init__(self) -> None:
        if self.channels % self.attention_heads:
            raise ValueError(f"attention_heads must divide channels, and {self.attention_heads} does not divide {self.channels}")

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells and an alignment; where the encoder gives tokens, the class token goes through projector and alignment too."""
        return Traits(needs=frozenset({"cells", "pairs", "alignment"}))

    @hookimpl
    def aligned_widths(self, dims: Dims) -> tuple[int, ...]:
        """Projections of both branches are aligned."""
        return (self.channels,)

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The projector, averaged in the target; with `online_ln` the frozen norm of predictions, `norm`."""
        width = dims.width("cells")
        projector = Head(Projector(width, self.channels, self.projector_depth, self.attention_heads, self.mlp_ratio, self.norm))
        norm = {"norm": Head(nn.LayerNorm(self.channels, eps=1e-5), "online_only", ParamRule(frozen=True))} if self.online_ln else {}
        return {"projector": projector} | norm

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`dense`, of order one; notes its two parts, which sum to it, and how many directions the targets use (1: collapsed)."""
        found = []
        for online, target in step.pairs:
            alignment = step.alignment(online, target, self.align)
            q = self._normalized(step, alignment.online(self._project(step, online, "online", alignment)))
            t = alignment.target(self._project(step, target, "target", alignment))
            found.append(dense_loss(q, t, alignment.weight, self.negative_weight))
        for name in ("pos", "neg", "directions"):
            step.note(f"dense/{name}", torch.stack([getattr(terms, name) for terms in found]).mean())
        return {"dense": torch.stack([terms.loss for terms in found]).mean()}

    def _normalized(self, step: Step, q: Tensor) -> Tensor:
        """Predictions [B, D, h, w] behind the norm of `online_ln`, in float32 or wider whatever the autocast."""
        if not self.online_ln:
            return q
        norm = step.branches.online.of(self, "norm")
        with torch.autocast(q.device.type, enabled=False):
            found: Tensor = norm(wide(q).movedim(1, -1)).movedim(-1, 1)
            return found

    def _project(self, step: Step, view: int, role: Role, alignment: Alignment) -> Tensor:
        """A view's projected tokens, or as a map where the encoder has no tokens or the alignment wants none."""
        features = (step.online if role == "online" else step.target)[view]
        if features.tokens is None:
            return step.apply(step.head(self, "projector"), view, role)
        tokens = step.apply(step.head(self, "projector"), view, role, on="tokens")
        if alignment.takes_tokens:
            return tokens
        height, width = features.at("cells").shape[2:]
        return to_map(tokens, (height, width), features.prefix, features.kept)


class Terms(NamedTuple):
    """Scalars of a pair of views."""

    loss: Tensor
    pos: Tensor  # mean |q - t|^2 / D
    neg: Tensor  # lambda mean q^T C q / D
    directions: Tensor  # (tr C)^2 / tr C^2: 1 where all targets are equal, D where they fill the space evenly


def dense_loss(q: Tensor, t: Tensor, weight: Tensor, negative_weight: float) -> Terms:
    """Predictions q and targets t [B, D, h, w], cells counted by `weight` [B, h, w].

    Gradient reaches q alone, 2 / (n D) (q - t + lambda C q); C is the same on all ranks, each rank's loss uses its own q.
    float32 or wider, whatever the autocast; the cost is that of q C, never of cells x cells.
    """
    with torch.autocast(q.device.type, enabled=False):
        counts = weight.flatten()
        rows = wide(q).movedim(1, -1).flatten(0, 2)
        channels = rows.shape[1]
        goals = F.layer_norm(wide(t.detach()).movedim(1, -1), (channels,), eps=1e-5).flatten(0, 2)
        shared = correlation(goals, counts)
        pos = weighted_mean((rows - goals).square().sum(1), counts) / channels
        neg = negative_weight * weighted_mean((rows @ shared * rows).sum(1), counts) / channels
        directions = shared.trace().square() / shared.square().sum().clamp(min=torch.finfo(shared.dtype).tiny)
    return Terms(pos + neg, pos, neg, directions)


@torch.no_grad()
def correlation(goals: Tensor, weight: Tensor) -> Tensor:
    """C [D, D]: mean of t t^T over rows [n, D] of all ranks, counted by `weight` [n]; not centered, without gradient."""
    weight = weight.to(goals.dtype)
    total = summed(weight.sum())
    return summed((goals * weight[:, None]).mT @ goals) / total.clamp(min=torch.finfo(goals.dtype).tiny)
