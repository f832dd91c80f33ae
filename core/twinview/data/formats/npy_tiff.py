"""Images that are no pictures to PIL: NumPy's .npy, and TIFF with any number of channels, of 8 or 16 bits.  Nothing here unpickles."""
from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinview.values import Size

if TYPE_CHECKING:
    from tifffile import TiffFile

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: of more than 4 GiB
ALPHA = (1, 2)  # TIFF's extra samples that are transparency
FULL = {8: 255, 16: 65535}  # full scale, by bits
PLAIN = (1, 2, 6)  # TIFF's photometric interpretations that are read: grey from black, RGB, YCbCr of JPEGs (which decodes to RGB)
YCBCR, JPEGS = 6, (6, 7)  # that one, and the compressions whose decoder makes RGB of it
FEW, DEEP = (1, 2, 4), range(9, 17)  # bits of a sample: fewer than 8, which are scaled to 0..255; more, of which a recipe's white says full scale


class Header(NamedTuple):
    """What a file says of its image."""

    size: Size  # height, width in pixels, upright
    channels: int  # without transparency
    bits: int  # of a channel: 8 or 16


def holds(data: bytes) -> bool:
    """Whether a file is a .npy or a TIFF, by its first bytes."""
    return data.startswith((NPY, *TIFF))


def header(data: bytes) -> Header:
    """Of a .npy or TIFF, without its pixels.  Raises ValueError for what `read` does not read."""
    if data.startswith(NPY):
        return _npy(data)
    with _opened(data) as tiff:
        return _tiff(tiff)


def read(data: bytes, most: int) -> Tensor:
    """[C, H, W] uint8 or uint16 of a .npy [H, W, C] or [H, W], or of a TIFF: its samples, its pages, or one other axis, as channels.

    Raises ValueError with the reason: other types or shapes, more than `most` values (before any memory is taken), a damaged file.
    """
    if data.startswith(NPY):
        _limit(_npy(data), most)
        with reasons("cannot be decoded"):
            found: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
        found = np.moveaxis(np.atleast_3d(found), 2, 0)
    else:
        with _opened(data) as tiff:
            said = _tiff(tiff)
            _limit(said, most)
            with reasons("cannot be decoded"):
                planes = [_planes(one, said.size) for one in tiff.series]
            found = (planes[0] if len(planes) == 1 else np.concatenate(planes))[: said.channels]
            if (bits := _bits(tiff)) in FEW:
                found = found.astype(np.uint8) * (FULL[8] // ((1 << bits) - 1))  # white is 255
    return torch.from_numpy(np.ascontiguousarray(found, dtype=found.dtype.newbyteorder("=")))


def _limit(said: Header, most: int) -> None:
    (height, width), channels = said.size, said.channels
    if channels * height * width > most:
        raise ValueError(f"has {channels} x {height} x {width} values (channels, height, width); images have at most {most}")


def _checked(shape: tuple[int, ...], dtype: np.dtype[Any] | None) -> None:
    if dtype is None or dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise ValueError(f"holds {dtype or 'values of no type that NumPy has'}; images hold uint8 or uint16")
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"is of shape {shape}; an image is [height, width] or [height, width, channels]")


def _npy(data: bytes) -> Header:
    """Raises ValueError where it is no image, or its values are not all there."""
    file = io.BytesIO(data)
    with reasons("is no whole .npy file"):
        version = np.lib.format.read_magic(file)
        shape, _, dtype = (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    _checked(shape, dtype)
    there, said = len(data) - file.tell(), math.prod(shape) * dtype.itemsize
    if there != said:
        raise ValueError(f"is no whole .npy file: {there} bytes follow its header, which says {said}")
    return Header((shape[0], shape[1]), shape[2] if len(shape) == 3 else 1, dtype.itemsize * 8)


@contextmanager
def _opened(data: bytes) -> Iterator[TiffFile]:
    try:
        from tifffile import TiffFile, logger
    except ImportError:
        raise ValueError("is a TIFF. `pip install 'twinview[tiff]'` installs what reads it") from None
    logger().setLevel("CRITICAL")  # what it finds wrong with a file comes out as the reason, or does not matter to the pixels
    with reasons("cannot be read as a TIFF"):
        tiff = TiffFile(io.BytesIO(data), _multifile=False)  # whatever its description says, no other file is opened
    with tiff:
        yield tiff


def _tiff(tiff: TiffFile) -> Header:
    """Raises ValueError where there is more than one axis beside height and width."""
    with reasons("cannot be read as a TIFF"):
        page, kinds = tiff.series[0].keyframe, {(s.shape, s.axes, s.dtype) for s in tiff.series}
        photometric, turned = int(page.photometric), getattr(page.tags.get("Orientation"), "value", 1)
    if len(kinds) > 1:
        raise ValueError(f"is a TIFF of {len(tiff.series)} images of several sizes or types; one file holds one image")
    if photometric not in PLAIN or turned != 1:
        what = "is turned by its orientation tag" if turned != 1 else f"has the photometric interpretation {photometric}"
        raise ValueError(f"is a TIFF that {what}; upright ones of grey (1, where 0 is black) or RGB (2) are read")
    if photometric == YCBCR and int(page.compression) not in JPEGS:
        raise ValueError("is a TIFF of YCbCr that is no JPEG; those of grey or RGB are read")
    ((shape, axes, dtype),) = kinds
    dtype = np.dtype(np.uint8) if dtype == np.bool_ else dtype  # of one bit
    sides = dict(zip(axes, shape))
    others = [length for axis, length in sides.items() if axis not in "YX" and length > 1]
    if len(tiff.series) > 1:
        others.append(len(tiff.series))
    if not {"Y", "X"} <= sides.keys() or len(others) > 1:
        raise ValueError(f"is a TIFF of axes {axes} {shape}; one axis beside height and width is its channels. Save each plane by itself")
    _checked((sides["Y"], sides["X"]), dtype)
    if (bits := _bits(tiff)) not in (8, *FEW, *DEEP):
        raise ValueError(f"is a TIFF of {bits or 'different'} bits a sample; those of {', '.join(map(str, FEW))}, 8 and up to 16 bits are read")
    transparent = sum(int(extra) in ALPHA for extra in page.extrasamples)  # they stand last
    return Header((sides["Y"], sides["X"]), (sum(others) or 1) - transparent, dtype.itemsize * 8)


def _bits(tiff: TiffFile) -> int:
    """Of a sample; 0 where they differ."""
    found = tiff.series[0].keyframe.bitspersample
    return found if isinstance(found, int) else 0


def _planes(series: Any, size: Size) -> NDArray[Any]:
    """[C, H, W] of a series of one axis beside height and width."""
    order = sorted(range(len(series.axes)), key=lambda n: "YX".find(series.axes[n]))  # others first: -1
    planes: NDArray[Any] = series.asarray(maxworkers=1).transpose(order).reshape(-1, *size)
    return planes


@contextmanager
def reasons(what: str, apart: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Whatever a reader raises, but for `apart`, becomes a ValueError of one line; of damaged files that may be nearly any exception."""
    try:
        yield
    except apart:
        raise
    except Exception as e:
        raise ValueError(f"{what}: {' '.join(str(e).split()) or type(e).__name__}") from None
