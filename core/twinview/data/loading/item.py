"""What a worker makes of one image."""
from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from twinview.data.dataset.read import BadSample
from twinview.values import Geometry


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
    bad: tuple[BadSample, ...] = ()  # samples that this one stands in for
