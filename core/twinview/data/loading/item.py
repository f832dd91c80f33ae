"""What a worker makes of one image."""
from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from twinview.data.dataset.read import BadSample
from twinview.values import Geometry


class Cut(NamedTuple):
    """Where a view lies in the picture of another, in that picture's pixels."""

    box: tuple[int, int, int, int]  # x0 y0 x1 y1
    flip: bool  # mirrored with respect to that picture


class Item(NamedTuple):
    """One image's part of a Batch; the same fields, without the batch dimension."""

    key: str
    id: int
    seed: int
    epoch: int
    images: tuple[Tensor, ...]  # V x [C, h, w] uint8, or float32 of 0..255
    geometry: Geometry
    hidden: tuple[Tensor | None, ...]
    augment: tuple[dict[str, Tensor], ...] | None
    labels: dict[str, Tensor]
    cuts: dict[int, Cut] = {}  # noqa: RUF012  views that are cut out of others once these are done
    bad: tuple[BadSample, ...] = ()  # samples that this one stands in for
