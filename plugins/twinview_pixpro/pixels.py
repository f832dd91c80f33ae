"""Pixel-to-propagation consistency: what a cell's surroundings say agrees with the other view's cells of the same place (PixPro, section 3.2)."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.hooks import hookimpl, part
from twinview.ops import conv_mlp, cosine_pairs, propagate
from twinview.ops.maps import visible_cells
from twinview.ops.means import wide
from twinview.values import Dims, Head, Step, Traits
from twinview_pixpro.pairs import near, pixel_bounds


@part
class Pixels:
    """PixPro's loss, -mean_b [sum_ij A_ij cos(y_i, sg z'_j) / sum_ij A_ij], averaged over all ordered pairs of views.

    A_ij = 1 where two cells lie near each other; y_i = sum_k max(cos(z_i, z_k), 0)^gamma v_k is propagated from the cells that resemble i.
    An image without a pair of near cells gives 0 and counts.
    The released loss of two views is four times this one: two directions, each with a factor of 2.
    """

    hidden: int = field(default=4096, validator=ge(1))  # width of the projector's hidden layer
    channels: int = field(default=256, validator=ge(1))  # width of the projections z
    distance: float = field(default=0.7, validator=gt(0))  # below which cells are a pair, in diagonals of the larger cell
    gamma: float = field(default=2.0, validator=gt(0))  # sharpness of the propagation
    transform: int = field(default=1, validator=ge(0))  # layers that make the values v of z; 0: v = z

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells, and paired views; pairs of cells come from the geometry, and no alignment is asked for."""
        return Traits(needs=frozenset({"cells", "pairs"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The averaged `projector`, and the online `values` unless `transform` is 0."""
        projector = Head(conv_mlp(dims.width("cells"), self.hidden, self.channels))
        if not self.transform:
            return {"projector": projector}
        return {"projector": projector, "values": Head(conv_mlp(self.channels, self.channels, self.channels, layers=self.transform), "online_only")}

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`pixels`, in [-1, 1].  Notes `pixels/positives`, near pairs of an image, and `pixels/none`, the share of images without one."""
        projector, losses, counts = step.head(self, "projector"), [], []
        targets = {view: step.apply(projector, view, "target") for view in sorted({j for _, j in step.pairs})}  # in order, as BatchNorm remembers it
        for online, target in step.pairs:
            z, other = step.apply(projector, online, "online"), targets[target]
            positive = self._positives(step, online, target, z, other)
            y = self.propagate(step.branches.online.of(self, "values") if self.transform else None, z, visible_cells(step, online, z))
            cosines = cosine_pairs(y, other.detach())
            counts.append(positive.sum((1, 2)))
            losses.append(-((cosines * positive).sum((1, 2)) / (counts[-1] + 1e-6)).mean())
        if step.watch:
            every = torch.stack(counts)
            step.note("pixels/positives", every.mean())
            step.note("pixels/none", (every == 0).float().mean())
        return {"pixels": torch.stack(losses).mean()}

    def propagate(self, values: nn.Module | None, z: Tensor, seen: Tensor | None = None) -> Tensor:
        """y [B, C, h, w] of projections z; `seen` [B, h, w]: how much a cell's vote counts (PixPro, eq. 3 and 4)."""
        votes = z if values is None else values(z)
        return propagate(z, F.normalize(wide(votes), dim=1), gamma=self.gamma, weight=seen)

    def _positives(self, step: Step, online: int, target: int, z: Tensor, other: Tensor) -> Tensor:
        """A [B, P, P'] float32; cells that the online branch did not see are no positives."""
        grids = (z.shape[2], z.shape[3]), (other.shape[2], other.shape[3])
        found = near(pixel_bounds(step.geometry, online), pixel_bounds(step.geometry, target), grids, self.distance)
        found = found * visible_cells(step, online, z).flatten(1)[:, :, None]
        if step.branches.target is step.branches.online:
            found = found * visible_cells(step, target, other).flatten(1)[:, None]
        return found.float()
