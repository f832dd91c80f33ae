"""From a picture to what an encoder takes: size, scale, mean and deviation."""
from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from torch import Tensor

from twinview.data.formats import decode
from twinview.data.formats.decode import PixelFormat
from twinview.data.loading.factory import central
from twinview.errors import DataError
from twinview.values import Size

if TYPE_CHECKING:
    from PIL.Image import Image


@attrs.frozen(kw_only=True)
class Transform:
    """How the images that an encoder was trained on were read: a plain value, which a data loader's workers may have too."""

    size: Size  # height, width in pixels that `__call__` gives
    mean: tuple[float, ...]  # of the channels, 0..1 of full scale
    std: tuple[float, ...]
    channels: int = 3  # of an image; with 3, grey ones become three equal channels
    white: int = 0  # of 16-bit images: the value that is full scale; 0: such images are refused

    def __call__(self, image: Image | Tensor | Any, *, size: Size | int | None = None, crop: bool = True) -> Tensor:
        """One image -> [C, h, w] float32, as the encoder takes it: `encoder(transform(image)[None])`.

        `image`: a PIL image, the path of a file, uint8 [C, H, W] or [H, W, C] (NumPy).  `size`: height, width in place of the transform's own;
        `crop`: the largest central box of that shape, instead of the whole image squeezed into it.  Raises DataError.
        """
        pixels = self.pixels(image)
        wanted = (size, size) if isinstance(size, int) else size or self.size
        cut = central(pixels, wanted) if crop else pixels
        return self.normalize(decode.resize(cut.contiguous(), wanted))

    def pixels(self, image: Image | Tensor | Any) -> Tensor:
        """An image of any kind that `__call__` takes -> [C, H, W] uint8, or float32 of 0..255 where `white` is set.  Raises DataError."""
        form = PixelFormat(self.channels, self.white)
        if isinstance(image, (str, PathLike)):
            try:
                return decode.image(Path(fspath(image)).read_bytes(), form)
            except OSError as e:
                raise DataError(f"{fspath(image)}: cannot be read: {e.strerror}.") from None
            except ValueError as e:
                raise DataError(f"{fspath(image)}: {e}.") from None
        if not isinstance(image, (Tensor, np.ndarray)) and hasattr(image, "convert"):  # of PIL, which need not be imported for it
            array = np.array(image.convert("L" if self.channels == 1 else "RGB"))
            image = array if array.ndim == 3 else array[..., None]
        if isinstance(image, np.ndarray):
            found = torch.from_numpy(np.array(image if image.ndim == 3 else image[..., None])).permute(2, 0, 1)
        elif isinstance(image, Tensor):
            found = image
        else:
            raise DataError(f"transform: takes a PIL image, a path, or uint8 pixels, not {type(image).__name__}.")
        if found.ndim != 3:
            raise DataError(f"transform: takes one image, [C, H, W], not {tuple(found.shape)}. For a batch of one size call normalize.")
        if len(found) == 1 and self.channels == 3:
            found = found.expand(3, -1, -1)
        if found.dtype not in ((torch.uint8, torch.float32) if self.white else (torch.uint8,)) or len(found) != self.channels:
            what = f"{str(found.dtype).removeprefix('torch.')} of {len(found)} channels"
            raise DataError(f"transform: takes uint8 pixels of {self.channels} channels, not {what}.")
        return found

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels [..., C, H, W] of 0..255 (uint8, or float32 of the same scale) -> float32, as the encoder saw them in its training.

        Raises DataError for another number of channels.
        """
        if pixels.ndim < 3 or pixels.shape[-3] != len(self.mean):
            raise DataError(f"normalize: takes [..., {len(self.mean)}, H, W], not {tuple(pixels.shape)}.")
        mean, std = (torch.tensor(numbers, device=pixels.device).view(-1, 1, 1) * 255 for numbers in (self.mean, self.std))
        return (pixels.float() - mean) / std
