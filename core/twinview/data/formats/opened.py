"""Pictures of 8 bits in color as arrays of pixels: their size before they are decoded, and JPEGs decoded into memory that is kept."""
from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinview.data.formats import container, decode
from twinview.values import Size

Pixels = NDArray[np.uint8]  # [H, W, 3], in one piece


class Opened(NamedTuple):
    """A picture whose size is known."""

    size: Size  # upright
    pixels: Callable[[], Pixels]  # decodes; good until another is decoded.  Raises ValueError
    held: int  # bytes until then


class JpegMemory:
    """Decodes JPEGs by simplejpeg, where it is installed, into the same memory again and again: new memory comes in pages that cost time."""

    def __init__(self) -> None:
        self._memory: Pixels = np.empty(0, np.uint8)
        self._decode: Callable[..., Pixels] | None = None
        with suppress(ImportError):
            self._decode = importlib.import_module("simplejpeg").decode_jpeg

    def pixels(self, data: bytes, frame: container.Frame) -> Pixels:
        """As `decode.image` decodes it, not yet turned.  Raises ValueError."""
        height, width = frame.size
        if self._decode is not None and frame.usual:
            if self._memory.size < 3 * height * width:
                self._memory = np.empty(3 * height * width, np.uint8)
            with suppress(ValueError):  # also for damage that torchvision only warns of, which then decides
                return self._decode(data, "RGB", buffer=self._memory)
        return in_one_piece(decode.stored_jpeg(data))


def opened(data: bytes, memory: JpegMemory) -> Opened:
    """A file's size, and its pixels when asked for; files other than JPEGs are decoded at once.  Raises ValueError with the reason."""
    frame = container.frame(data)
    if frame is None:
        pixels = in_one_piece(decode.image(data))
        return Opened((pixels.shape[0], pixels.shape[1]), lambda: pixels, pixels.nbytes)
    decode.check_size(frame.size)
    turn, (height, width) = container.orientation(data), frame.size
    size = (width, height) if turn >= container.TURNED else (height, width)
    return Opened(size, partial(_upright, data, memory, frame, turn), len(data))


def _upright(data: bytes, memory: JpegMemory, frame: container.Frame, turn: int) -> Pixels:
    try:
        stored = memory.pixels(data, frame)
    except ValueError:  # a JPEG that Pillow may read, and turns itself
        return in_one_piece(decode.image(data))
    return stored if turn == 1 else in_one_piece(container.upright(torch.from_numpy(stored).permute(2, 0, 1), turn))


def in_one_piece(pixels: Tensor) -> Pixels:
    """[3, H, W] -> [H, W, 3], itself where it lies so in memory."""
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
