"""JPEGs decoded at a half, a quarter or an eighth of their size: the decoder then does a part of its work, and resizing too."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from twinview.data.formats import container, decode
from twinview.data.formats.npy_tiff import reasons
from twinview.values import Geometry, Size

UNITS = (8, 4, 2)  # pixels of the file's side that become one


def full_size(data: bytes) -> Size | None:
    """Height and width of a JPEG that `image` reads; None for other files, for CMYK and for those that EXIF turns.

    Raises ValueError for what `decode.image` refuses by the header.
    """
    if not data.startswith(container.JPEG):
        return None
    opened = decode.open_image(data)
    upright = container.orientation(data, opened) == 1
    return (opened.height, opened.width) if upright and opened.mode in ("L", "RGB") else None


def unit(geometry: Geometry, size: Size) -> int:
    """The largest of UNITS at which no view of a source of `size` has to be enlarged; else 1.  The boxes and sizes of the views alone decide."""
    height, width = size
    room = [
        min((right - left) * width / columns, (bottom - top) * height / rows)
        for (left, top, right, bottom), (rows, columns) in zip(geometry.boxes.tolist(), geometry.sizes)
    ]
    return next((n for n in UNITS if min(room) >= n), 1)


def image(data: bytes, unit: int) -> Tensor:
    """A JPEG of `full_size` -> RGB [3, ceil(H / unit), ceil(W / unit)] uint8, a pixel for each unit x unit.  Raises ValueError."""
    if unit == 1:
        return decode.image(data)
    opened = decode.open_image(data)
    asked = (-(-opened.width // unit), -(-opened.height // unit))
    with reasons("cannot be decoded"):
        opened.draft("RGB", (max(opened.width // unit, 1), max(opened.height // unit, 1)))
        if opened.size != asked:
            raise ValueError(f"is decoded as {opened.size}, not {asked}")
        return torch.from_numpy(np.array(opened if opened.mode == "RGB" else opened.convert("RGB"))).permute(2, 0, 1)  # convert would copy an RGB
