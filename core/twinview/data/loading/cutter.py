"""Cuts views out of an image straight into a batch: in machine code where that pays and gives the same pixels, else by torch."""
from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twinview.data.loading.cutting import cut

log = logging.getLogger(__name__)

AFTER = 256  # images that a process cuts by torch before it takes a second to import the compiler
TRIALS = (  # height and width of an image, a box, height and width of a view
    ((40, 60), (3, 2, 51, 39), (32, 32)),
    ((9, 7), (0, 0, 7, 9), (16, 20)),
    ((90, 80), (1, 0, 78, 90), (30, 41)),
    ((64, 64), (0, 0, 64, 64), (64, 64)),
)


class Cutter:
    """Of one process."""

    def __init__(self) -> None:
        self.images, self._room, self._spare = 0, np.empty(0, np.uint32), 0
        self._compiled: Callable[..., bool] | None = None

    def __call__(self, pixels: NDArray[np.uint8], boxes: Sequence[Sequence[int]], flips: Sequence[bool], outs: Sequence[NDArray[np.uint8]]) -> None:
        """The boxes x0 y0 x1 y1 of an image [H, W, 3] to `outs`, [3, h, w] each, mirrored where `flips` says so."""
        self.images += 1
        if self.images == AFTER:
            self._compiled = self._made()
        for box, flip, out in zip(boxes, flips, outs):
            if self._compiled is None or not self._compiled(pixels, *box, flip, self._lines(box[3] - box[1], out.shape[2]), out):
                out[:] = by_torch(pixels, box, flip, out.shape[1:])

    def _made(self) -> Callable[..., bool] | None:
        """The compiled cut; None where there is no compiler, or torch, of another version or processor, gives other pixels."""
        try:
            from twinview.ops.compiled.cut import SPARE
            from twinview.ops.compiled.cut import cut as made
        except ImportError as e:
            log.info("Views are cut by torch: %s.", e)
            return None
        self._spare, rng = SPARE, np.random.default_rng(0)
        for shape, box, size in TRIALS:
            pixels, out = rng.integers(0, 256, (*shape, 3), np.uint8), np.empty((3, *size), np.uint8)
            if not made(pixels, *box, True, self._lines(shape[0], size[1]), out) or not np.array_equal(out, by_torch(pixels, box, True, size)):
                log.info("Views are cut by torch, whose pixels are not those of the compiled cut.")
                return None
        compiled: Callable[..., bool] = made
        return compiled

    def _lines(self, rows: int, width: int) -> NDArray[np.uint32]:
        """Room for the lines between across and down, kept: new memory comes in pages that cost time."""
        rows += self._spare
        if self._room.size < rows * width:
            self._room = np.zeros(rows * width, np.uint32)
        return self._room[: rows * width].reshape(rows, width)


def by_torch(pixels: NDArray[np.uint8], box: Sequence[int], flip: bool, size: Any) -> NDArray[np.uint8]:
    """[3, h, w]."""
    found: NDArray[np.uint8] = cut(torch.from_numpy(pixels).permute(2, 0, 1), box, tuple(size), flip).numpy()
    return found
