"""Bytes of a sample -> tensors.  A sample that cannot be decoded raises BadSample with the reason; nothing here unpickles."""
from __future__ import annotations

import io
from collections.abc import Callable, Collection
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from twinview.data.shards import Shards
from twinview.errors import DataError
from twinview.values import Size

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "bmp")
MAP_FIELD = "seg.png"  # `png` too, where the image is another field
PNG = b"\x89PNG\r\n\x1a\n"
MAP_MODES = ("1", "L", "P", "I", "I;16", "I;16B")  # PIL's, of one channel of whole numbers
DEEP = ("I", "F")  # PIL's modes of more than 8 bits a channel

DECODERS: dict[bytes, Callable[..., Tensor]] = {}  # by a file's first bytes; PIL decodes the others
with suppress(ImportError):  # torchvision means to drop these; PIL then reads all, at two thirds of the speed
    from torchvision.io import ImageReadMode, decode_jpeg, decode_png

    DECODERS = {b"\xff\xd8": decode_jpeg, PNG: decode_png}


class BadSample(Exception):
    """A sample that cannot be decoded: which, and why."""

    def __init__(self, index: int, place: str, reason: str) -> None:
        super().__init__(index, place, reason)  # as it is pickled between processes
        self.index, self.place, self.reason = index, place, reason

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def bad_sample(shards: Shards, i: int, reason: str) -> BadSample:
    """Name a sample by its shard and key."""
    return BadSample(i, f"{shards.path(i)}, sample {shards.key(i)!r}", reason)


def read_image(shards: Shards, i: int) -> Tensor:
    """The image of sample `i`, [3, H, W] uint8.  Raises BadSample."""
    field = image_field(shards.names(i))
    if field is None:
        raise bad_sample(shards, i, f"has no image ({', '.join(IMAGE_FIELDS)}); it has {', '.join(shards.names(i))}")
    try:
        return image(shards.read(i, (field,)).fields[field])
    except ValueError as e:
        raise bad_sample(shards, i, str(e)) from None


def read_class(shards: Shards, i: int) -> int:
    """The class number of sample `i`, field `cls`.  Raises DataError: where labels are asked for, none may be missing."""
    text = shards.read(i, ("cls",)).fields.get("cls", b"").strip()
    if not text.isdigit():
        raise DataError(f"{bad_sample(shards, i, 'has no class number')}; its field cls holds {text[:20]!r}.")
    return int(text)


def read_map(shards: Shards, i: int) -> Tensor:
    """The label map of sample `i`, [H, W] int64.  Raises DataError: where labels are asked for, none may be missing."""
    names = shards.names(i)
    field = MAP_FIELD if MAP_FIELD in names else "png"
    if field not in names or field == image_field(names):
        raise DataError(f"{bad_sample(shards, i, 'has no label map')} ({MAP_FIELD}, or png beside a jpg); it has {', '.join(names)}.")
    try:
        return label_map(shards.read(i, (field,)).fields[field])
    except ValueError as e:
        raise DataError(f"{bad_sample(shards, i, f'its label map {e}')}.") from None


def image_field(names: Collection[str]) -> str | None:
    """Which of a sample's fields is the image."""
    return next((field for field in IMAGE_FIELDS if field in names), None)


def image(data: bytes) -> Tensor:
    """JPEG, PNG or whatever PIL reads -> RGB [3, H, W] uint8, turned as EXIF says.  Raises ValueError with the reason.

    Grey and palette become RGB, transparency is dropped, CMYK is converted; more than 8 bits a channel is refused.
    """
    if data.startswith(PNG) and data[24:25] == b"\x10":
        raise ValueError("has 16 bits a channel; images have 8")
    for begin, decode in DECODERS.items():
        if data.startswith(begin):
            with suppress(RuntimeError):  # PIL reads some that torchvision does not, and says why it does not read the others
                return decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB, apply_exif_orientation=True)
    picture = _open(data)
    if picture.mode.startswith(DEEP):
        raise ValueError(f"has more than 8 bits a channel (PIL mode {picture.mode}); images have 8")
    try:
        pixels = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as e:
        raise ValueError(f"cannot be decoded: {e}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def label_map(data: bytes) -> Tensor:
    """A picture of class numbers (grey of 8 or 16 bits, or palette: the palette's places) -> [H, W] int64.  Raises ValueError."""
    picture = _open_map(data)
    try:
        return torch.from_numpy(np.array(picture).astype(np.int64))
    except (OSError, ValueError, SyntaxError) as e:
        raise ValueError(f"cannot be decoded: {e}") from None


def image_size(data: bytes) -> Size:
    """Height and width, from the header alone, as EXIF turns them.  Raises ValueError."""
    picture = _open(data)
    turned = picture.getexif().get(0x0112, 1) >= 5
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def map_size(data: bytes) -> Size:
    """Height and width of a label map, from the header alone.  Raises ValueError for a picture that `label_map` does not read."""
    picture = _open_map(data)
    return picture.height, picture.width


def resize(pixels: Tensor, size: Size) -> Tensor:
    """[3, H, W] uint8 -> [3, h, w] uint8, bilinear, antialiased where it shrinks."""
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


def resize_map(labels: Tensor, size: Size) -> Tensor:
    """[H, W] -> [h, w]: the label at the middle of each new pixel."""
    rows, columns = (((torch.arange(n) + 0.5) * old / n).long() for n, old in zip(size, labels.shape))
    return labels[rows[:, None], columns]


def _open_map(data: bytes) -> Image.Image:
    picture = _open(data)
    if picture.mode not in MAP_MODES:
        raise ValueError(f"is of PIL mode {picture.mode}, and a label map is a PNG of class numbers: of mode L, P or 1, or of 16 bits")
    return picture


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError(f"is no image; it begins with {data[:12]!r}" if data else "is an empty file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise ValueError(f"cannot be opened: {e}") from None
