"""One sample on its way into a shard: read, checked by its headers, shrunk or encoded anew where that is asked for, measured."""
from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from twinview.data import decode
from twinview.data.shards import Sample
from twinview.data.sources import Content, Relabelled
from twinview.values import Size

QUALITY = 90  # of an image that is shrunk


class BadEntry(Exception):
    """A sample that cannot be packed: its file or key, and why."""


@attrs.frozen(kw_only=True)
class Recode:
    """What happens to images; by default nothing, their bytes stay as they are."""

    shorter_side: int | None = None  # pixels that the shorter side of a larger image is brought to
    quality: int | None = None  # every image becomes a JPEG of this quality

    def size(self, size: Size) -> Size:
        """Height and width that an image comes to have; it never grows."""
        side = min(self.shorter_side or min(size), *size)
        height, width = (max(1, round(n * side / min(size))) for n in size)
        return height, width


class Moments(NamedTuple):
    """Means over the pixels of an image, 0..1, of three channels."""

    mean: tuple[float, ...]
    square: tuple[float, ...]


class Prepared(NamedTuple):
    """A sample as it will lie in the shard."""

    sample: Sample
    channels: int  # 1 or 3
    moments: Moments | None


def prepare(entry: tuple[str, Mapping[str, Content]], recode: Recode, measured: bool) -> Prepared | BadEntry:
    """Read and check an entry.  What is wrong with it is given back, not raised: it has its place among the others."""
    try:
        return _prepared(*entry, recode, measured)
    except BadEntry as e:
        return e


def _prepared(key: str, contents: Mapping[str, Content], recode: Recode, measured: bool) -> Prepared:
    image, drawn = decode.image_field(contents), decode.map_field(contents)
    if key.startswith("/") or ".." in key.split("/"):
        raise BadEntry(f"{key!r}: the key names a place outside of the shard")
    if image is None:
        raise BadEntry(f"{key}: has no image ({', '.join(decode.IMAGE_FIELDS)}); it has {', '.join(contents)}")
    data: dict[str, bytes] = {}
    for field, content in contents.items():
        with _placed(key, field, content):
            data[field] = content if isinstance(content, bytes) else _path(content).read_bytes()
    with _placed(key, image, contents[image]):
        size, channels = decode.image_header(data[image])
        small = recode.size(size)
        if recode.quality is not None or small != size:
            data = {"jpg" if field == image else field: content for field, content in (data | {image: _jpeg(data[image], small, recode)}).items()}
    if drawn is not None:
        content = contents[drawn]
        with _placed(key, drawn, content):
            data[drawn] = _map(data[drawn], size, small, content.table if isinstance(content, Relabelled) else None)
    pixels = data[decode.image_field(data) or image]
    return Prepared(Sample(key, data), channels, _moments(pixels) if measured else None)


def _path(content: Path | Relabelled) -> Path:
    return content.path if isinstance(content, Relabelled) else content


@contextmanager
def _placed(key: str, field: str, content: Content) -> Iterator[None]:
    """What is wrong with a file gets its place."""
    place = f"{key}.{field}" if isinstance(content, bytes) else str(_path(content))
    try:
        yield
    except ValueError as e:
        raise BadEntry(f"{place}: {e}") from None
    except OSError as e:
        raise BadEntry(f"{place}: cannot be read: {e.strerror}") from None


def _map(data: bytes, size: Size, small: Size, table: tuple[int, ...] | None) -> bytes:
    """A label map of an image of `size`, brought to `small`, its numbers changed by `table`; the same bytes where there is nothing to do."""
    found = decode.map_size(data)
    if found != size:
        raise ValueError(f"is {found} pixels (height, width), its image {size}; a label map has its image's size")
    if table is None and small == size:
        return data
    labels = decode.label_map(data)
    if table is not None:
        labels = torch.tensor(table)[labels.clamp(max=len(table) - 1)]
    numbers = decode.resize_map(labels, small).numpy()
    file = io.BytesIO()
    Image.fromarray(numbers.astype(np.uint8 if numbers.max() < 256 else np.uint16)).save(file, "PNG")
    return file.getvalue()


def _jpeg(data: bytes, size: Size, recode: Recode) -> bytes:
    picture = decode.picture(data)
    if (picture.height, picture.width) != size:
        picture = picture.resize(size[::-1], Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=recode.quality or QUALITY)
    return file.getvalue()


def moments(pixels: Tensor) -> Moments:
    """Of an image [3, H, W] uint8, counted in whole numbers."""
    levels, size = np.arange(256), pixels[0].numel()
    counts = [np.bincount(channel.numpy().ravel(), minlength=256) for channel in pixels]
    return Moments(tuple(int(n @ levels) / (255 * size) for n in counts), tuple(int(n @ levels**2) / (255**2 * size) for n in counts))


def measured(channels: int, found: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Channels of all images; mean and deviation of each channel over those with moments, 0..1, every image counting the same."""
    if not found:
        return {"channels": channels, "measured": 0}
    mean, square = ([sum(one[part][c] for one in found) / len(found) for c in range(3)] for part in (0, 1))
    std = [round(math.sqrt(max(s - m * m, 0)), 4) for m, s in zip(mean, square)]
    return {"channels": channels, "measured": len(found), "mean": [round(m, 4) for m in mean], "std": std}


def _moments(data: bytes) -> Moments | None:
    """None for a picture that was cut short: it is packed as it is, and counted when it is read."""
    try:
        return moments(decode.image(data))
    except ValueError:
        return None
