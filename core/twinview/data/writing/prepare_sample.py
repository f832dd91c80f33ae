"""One sample on its way into a shard: read, checked by its headers, shrunk or encoded anew where that is asked for, measured."""
from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from twinview.data.formats import decode, npy_tiff
from twinview.data.formats.fields import IMAGE_FIELDS, image_field, map_field
from twinview.data.formats.npy_tiff import FULL, Header
from twinview.data.store.regular import read_regular
from twinview.data.store.sample import Sample
from twinview.data.writing.entry import Content, Relabeled
from twinview.data.writing.statistics import Moments, moments
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


class Prepared(NamedTuple):
    """A sample as it will lie in the shard."""

    sample: Sample
    kind: str  # channels x bits: 3x8
    moments: Moments | None


def prepare(entry: tuple[str, Mapping[str, Content]], recode: Recode, measured: bool) -> Prepared | BadEntry:
    """Read and check an entry.  What is wrong with it is given back, not raised: it has its place among the others."""
    try:
        return _prepared(*entry, recode, measured)
    except BadEntry as e:
        return e


def _prepared(key: str, contents: Mapping[str, Content], recode: Recode, measured: bool) -> Prepared:
    image, drawn = image_field(contents), map_field(contents)
    if key.startswith("/") or ".." in key.split("/"):
        raise BadEntry(f"{key!r}: the key names a place outside of the shard")
    if image is None:
        raise BadEntry(f"{key}: has no image ({', '.join(IMAGE_FIELDS)}); it has {', '.join(contents)}")
    data: dict[str, bytes] = {}
    for field, content in contents.items():
        with _placed(key, field, content):
            data[field] = content if isinstance(content, bytes) else read_regular(_path(content))
    with _placed(key, image, contents[image]):
        said = decode.image_header(data[image])
        size, small = said.size, recode.size(said.size)
        if recode.quality is not None or small != size:
            kind, new = _encoded(data[image], said, small, recode)
            data = {kind if field == image else field: content for field, content in (data | {image: new}).items()}
    if drawn is not None:
        content = contents[drawn]
        with _placed(key, drawn, content):
            data[drawn] = _map(data[drawn], size, small, content.table if isinstance(content, Relabeled) else None)
    pixels = data[image_field(data) or image]
    return Prepared(Sample(key, data), f"{said.channels}x{said.bits}", _moments(pixels) if measured else None)


def _path(content: Path | Relabeled) -> Path:
    return content.path if isinstance(content, Relabeled) else content


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


def _encoded(data: bytes, said: Header, size: Size, recode: Recode) -> tuple[str, bytes]:
    """Field and bytes of an image brought to `size`: a JPEG, or without loss what no JPEG holds, a grey .png or a .npy."""
    if said.bits == 8 and said.channels in (1, 3):
        return "jpg", _jpeg(data, size, recode)
    if recode.quality is not None:
        raise ValueError(f"has {said.channels} x {said.bits} bits a pixel, which no JPEG holds: pack it without quality=N")
    values = decode.values(data)
    resized = F.interpolate(values.float()[None], size, mode="bicubic", antialias=True)[0].round().clamp(0, FULL[said.bits])
    found = resized.numpy().astype(values.numpy().dtype)
    file = io.BytesIO()
    if said.channels == 1:
        Image.fromarray(found[0]).save(file, "PNG")
        return "png", file.getvalue()
    np.save(file, np.ascontiguousarray(np.moveaxis(found, 0, 2)), allow_pickle=False)
    return "npy", file.getvalue()


def _jpeg(data: bytes, size: Size, recode: Recode) -> bytes:
    picture = Image.fromarray(decode.values(data).permute(1, 2, 0).squeeze(2).numpy()) if npy_tiff.holds(data) else decode.picture(data)
    if (picture.height, picture.width) != size:
        picture = picture.resize(size[::-1], Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=recode.quality or QUALITY)
    return file.getvalue()


def _moments(data: bytes) -> Moments | None:
    """None for a picture that was cut short: it is packed as it is, and counted when it is read."""
    try:
        return moments(decode.values(data))
    except ValueError:
        return None
