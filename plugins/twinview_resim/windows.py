"""Region similarity: a window that slides over one view meets itself in the other (ReSim, section 3)."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from attrs import field
from attrs.validators import deep_iterable, gt
from torch import Tensor
from torch.nn import functional as F

from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops import gather_rows, info_nce_queue, precise_roi_mean
from twinview.ops.checks import known_levels
from twinview.ops.maps import visible_cells
from twinview.ops.means import weighted_mean, wide
from twinview.ops.ranks import summed, world
from twinview.values import Dims, Geometry, Head, Size, Step, Traits
from twinview_resim.pyramid import Pyramid


def _three(_: object, attribute: object, value: list[str]) -> None:
    if len(value) != 3:
        raise ValueError(f"levels wants three levels, coarse to fine, not {value}")


@part
class Windows:
    """InfoNCE between windows of the overlap, at two levels of a feature pyramid; negatives are the 3x3 means of the key view's maps.

    A window counts where it lies wholly inside the other view.  Negatives hold the keys of the same image and of overlapping cells, as released;
    those of the finer level are this rank's alone.
    Published beside `moco.image`, each with weight 1 (this one is the *sum* over its two levels).
    """

    levels: list[str] = field(factory=lambda: ["c5", "c4", "c3"], validator=_three)  # coarse to fine; windows slide over the last two
    channels: int = field(default=256, validator=gt(0))  # width of the pyramid's maps
    side: tuple[int, int] = field(default=(48, 32), validator=deep_iterable(gt(0)))  # of a window, pixels of a view of `reference`; coarse, fine
    stride: tuple[int, int] = field(default=(32, 24), validator=deep_iterable(gt(0)))  # between windows
    reference: int = field(default=224, validator=gt(0))  # side of the views, in pixels, that both are meant for; they scale with the view
    ranks: Literal["released", "together"] = "released"  # fine negatives and means of windows: each rank's own, or over all ranks as if they were one
    temperature: float = field(default=0.2, validator=gt(0))  # of the softmax over cosines

    @hookimpl
    def traits(self) -> Traits:
        """Needs levels, and paired views; places come from the geometry, and no alignment is asked for."""
        return Traits(needs=frozenset({"levels", "pairs"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The `pyramid`, averaged in the target."""
        return {"pyramid": Head(Pyramid([dims.width(level) for level in self.levels], self.channels))}

    @hookimpl
    def check(self, dims: Dims) -> None:
        """Raises RecipeError for a level that the encoder does not give, or a map too small for means of 3x3 cells."""
        place, there = "[[loss]] resim.windows", dims.encoder.levels
        known_levels(self.levels, dims, place)
        for n, side in enumerate(self.side):
            if any(len(self._slid(dims.sizes[online], n)) == 0 for online, _ in dims.pairs):
                said = f"no window of {side} pixels lies within a view of {self.reference}"
                raise RecipeError(f"{place}.side: {said}. Write sides below reference.")
        for view in sorted({target for _, target in dims.pairs}):
            cells = -(-min(dims.sizes[view]) // there[self.levels[1]].stride)
            if cells < 3:
                raise RecipeError(f"{place}: {self.levels[1]} of view {view} has {cells} x {cells} cells; negatives want 3 x 3. Raise views.size.")

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`windows`, nats: both levels, summed; the mean over ordered pairs.  Notes `windows/LEVEL`, the share of windows that count."""
        terms = []
        for online, target in step.pairs:
            own = step.apply(step.head(self, "pyramid"), online, "online", on=self.levels)
            other = step.apply(step.head(self, "pyramid"), target, "target", on=self.levels)
            for which, (queries, keys) in enumerate(zip(own, other, strict=True)):
                terms.append(self.level_loss(step, online, target, queries, keys, which))
        return {"windows": torch.stack(terms).sum() / len(step.pairs)}

    def level_loss(self, step: Step, online: int, target: int, queries: Tensor, keys: Tensor, which: int) -> Tensor:
        """A scalar: of one pair of views and one of the two levels."""
        size = step.geometry.sizes[online]
        windows = self._slid(size, which).to(queries.device)
        there, valid = carry(step.geometry, online, target, windows)
        weight = wide(valid.to(queries.dtype))  # a sum of bfloat16 would lose windows above 256
        if step.hidden[online] is not None:  # a window counts as far as the online branch saw it
            seen = visible_cells(step, online, queries)[:, None]
            weight = weight * precise_roi_mean(seen, in_cells(windows.expand(len(valid), -1, -1), size, seen))[..., 0]
        step.note(f"windows/{self.levels[which + 1]}", valid.float().mean())
        query = precise_roi_mean(queries, in_cells(windows.expand(len(valid), -1, -1), size, queries))
        key = precise_roi_mean(keys, in_cells(there, step.geometry.sizes[target], keys)).detach()
        cells = F.avg_pool2d(keys.detach(), 3, 1).flatten(2).mT.flatten(0, 1)
        cells = gather_rows(cells.contiguous()) if which == 0 or self.ranks == "together" else cells
        losses = info_nce_queue(query.flatten(0, 1), key.flatten(0, 1), F.normalize(cells.to(query.dtype), dim=1), self.temperature)
        if self.ranks == "released":
            return weighted_mean(losses, weight.flatten())
        # gradients are averaged over ranks: the share of this one, times their number
        count = summed(weight.sum()).clamp(min=torch.finfo(losses.dtype).tiny)
        return (losses * weight.flatten()).sum() / count * world()

    def _slid(self, size: Size, which: int) -> Tensor:
        """`slide` over a view of `size`, at one of the two levels."""
        return slide(size, self.side[which] * min(size) / self.reference, self.stride[which] * min(size) / self.reference)


def slide(size: Size, side: float, stride: float) -> Tensor:
    """[K, 4]: x0 y0 x1 y1 in pixels of a view of `size` of the squares of `side` at every `stride` that end before it does, row by row."""
    corners = [[i * stride for i in range(length) if i * stride + side < length] for length in size]
    y, x = torch.meshgrid(*(torch.tensor(c, dtype=torch.float64) for c in corners), indexing="ij")
    corner = torch.stack([x, y], -1).view(-1, 2)
    return torch.cat([corner, corner + side], 1)


def carry(geometry: Geometry, online: int, target: int, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Windows [K, 4] of the online view in the target's pixels, [B, K, 4], and whether they lie wholly inside it, [B, K].

    Those that do not are the box 0 0 1 1.
    """
    sides = [windows.new_tensor([geometry.sizes[view][1], geometry.sizes[view][0]]) for view in (online, target)]
    exact = geometry._replace(boxes=geometry.boxes.double())
    corners = (windows.view(-1, 2) / sides[0]).expand(len(exact.boxes), -1, -1)
    found = (exact.to_view(exact.to_source(corners, online), target) * sides[1]).view(len(exact.boxes), -1, 2, 2)  # [B, K, corner, 2]
    boxes = torch.cat([found.amin(2), found.amax(2)], -1)  # where one view is mirrored, left and right change places
    tiny = 1e-3  # pixels: boxes are kept as float32 shares of the source
    inside = (boxes[..., :2] > -tiny).all(-1) & (boxes[..., 2:] < sides[1] - tiny).all(-1)
    return torch.where(inside[..., None], boxes, boxes.new_tensor([0.0, 0.0, 1.0, 1.0])), inside


def in_cells(boxes: Tensor, size: Size, maps: Tensor) -> Tensor:
    """Boxes [B, K, 4] in pixels of a view of `size`, in cells of its `maps` [B, C, h, w]."""
    scale = boxes.new_tensor([maps.shape[3] / size[1], maps.shape[2] / size[0]])
    return boxes * scale.repeat(2)
