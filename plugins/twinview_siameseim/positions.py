"""Fixed positions as sines: of a view's own cells, and of another view's cells as the first one would number them."""
from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from twinview.ops.sines import sines
from twinview.values import Geometry, Size


class Relation(NamedTuple):
    """Where a target view's cells lie in the online view's own frame, after its crop and mirroring; float32 or wider, without gradient.

    Both frames are axis-aligned, so that a row depends on the row alone; a mirrored pair only runs backwards along its columns.
    """

    rows: Tensor  # [B, h'] rho, in cells of the online view; 0 is the middle of its first row
    columns: Tensor  # [B, w'] gamma, likewise
    scales: Tensor  # [B, 2] height and width of the target's box over the online's


def relate(geometry: Geometry, online: int, target: int, grids: tuple[Size, Size]) -> Relation:
    """The relation of two views whose maps have `grids` (h, w), online and target."""
    (height, width), there = grids
    inside = geometry.to_view(geometry.centers(target, there), online).view(-1, *there, 2)
    sides = geometry.boxes[..., 2:] - geometry.boxes[..., :2]
    return Relation(
        rows=height * inside[:, :, 0, 1] - 0.5,
        columns=width * inside[:, 0, :, 0] - 0.5,
        scales=(sides[:, target] / sides[:, online]).flip(1),
    )


def relative_sines(relation: Relation, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four blocks of e(a, b): s of rho, gamma, 10 ln s_h and 10 ln s_w, each C/2 wide and broadcastable to [B, h', w', C/2]."""
    half = channels // 2
    scales = sines(10 * relation.scales.log(), half)[:, None, None]  # [B, 1, 1, 2, C/2]
    return sines(relation.rows, half)[:, :, None], sines(relation.columns, half)[:, None], scales[..., 0, :], scales[..., 1, :]
