"""The compiled cut gives torch's pixels, or leaves them to torch."""
from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from twinview.data.loading import cutter
from twinview.data.loading.cutter import Cutter, by_torch


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Cutter:
    """A cutter that compiles at once."""
    monkeypatch.setattr(cutter, "AFTER", 1)
    return Cutter()


@pytest.mark.parametrize("shape", [(360, 480), (7, 5), (1, 1), (100, 900), (1, 300), (64, 3)], ids=str)
@pytest.mark.parametrize("sizes", [((224, 224), (96, 96)), ((24, 33), (1, 1)), ((17, 5), (130, 64))], ids=str)
def test_pixels_are_torchs(compiled: Cutter, shape: tuple[int, int], sizes: tuple[tuple[int, int], ...]) -> None:
    """Noise, and stripes of black and white, whose sums are the largest."""
    rng, (height, width) = np.random.default_rng(1), shape
    for turn in range(6):
        pixels: Any = rng.integers(0, 256, (height, width, 3), np.uint8)
        if turn % 2:
            pixels = np.ascontiguousarray(np.broadcast_to(255 * (pixels[:, :1] > 40), pixels.shape).astype(np.uint8))
        boxes, outs = [], [np.zeros((3, *size), np.uint8) for size in sizes]
        for _ in sizes:
            x0, y0 = (0, 0) if turn == 0 else (int(rng.integers(width)), int(rng.integers(height)))
            boxes.append((x0, y0, int(rng.integers(x0 + 1, width + 1)), int(rng.integers(y0 + 1, height + 1))))
        compiled(pixels, boxes, (turn > 2, turn < 3), outs)
        assert compiled._compiled is not None
        for box, flip, out in zip(boxes, (turn > 2, turn < 3), outs):
            assert np.array_equal(out, by_torch(pixels, box, flip, out.shape[1:])), (box, flip)


def test_images_shrunk_beyond_what_floats_hold_are_left_to_torch(compiled: Cutter) -> None:
    from twinview.ops.compiled.cut import cut

    pixels, out = np.full((400, 40, 3), 255, np.uint8), np.zeros((3, 20, 20), np.uint8)
    assert not cut(pixels, 0, 0, 40, 400, False, np.zeros((403, 20), np.uint32), out) and not out.any()
    compiled(pixels, [(0, 0, 40, 400)], [False], [out])
    assert (out == 255).all()


def test_without_a_compiler_or_with_another_torch_it_is_torch(monkeypatch: pytest.MonkeyPatch, compiled: Cutter) -> None:
    pixels, out = np.arange(75, dtype=np.uint8).reshape(5, 5, 3), np.zeros((3, 4, 4), np.uint8)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "twinview.ops.compiled.cut", None)
        compiled(pixels, [(0, 0, 5, 5)], [False], [out])
    assert compiled._compiled is None and np.array_equal(out, by_torch(pixels, (0, 0, 5, 5), False, (4, 4)))
    monkeypatch.setattr(cutter, "by_torch", lambda *args: by_torch(*args) ^ 1)
    assert Cutter()._made() is None


def test_a_process_that_cuts_few_images_compiles_nothing() -> None:
    few, out = Cutter(), np.zeros((3, 4, 4), np.uint8)
    for _ in range(cutter.AFTER - 1):
        few(np.zeros((5, 5, 3), np.uint8), [(0, 0, 5, 5)], [True], [out])
    assert few._compiled is None
