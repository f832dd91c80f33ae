"""Bytes of a sample -> tensors.  A sample that cannot be decoded raises BadSample with the reason; nothing here unpickles."""
from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from twinview.data.formats import container, npy_tiff
from twinview.data.formats.container import JPEG, PNG
from twinview.data.formats.npy_tiff import Header, reasons
from twinview.ops.vision import import_torchvision
from twinview.recipe.tables import Data
from twinview.values import Size

T = TypeVar("T")
MAP_MODES = ("1", "L", "P", "I", "I;16", "I;16B")  # PIL's, of one channel of whole numbers
GREY_16 = ("I;16", "I;16B", "I;16L")  # PIL's modes of 16-bit grey
DEEP = ("I", "F")  # how PIL's modes of more than 8 bits a channel begin
GREY = ("1", "L", "LA")  # PIL's modes of one channel, transparency aside
GREY_PNG = b"\0"  # the kind of color in a PNG's header
MAX_PIXELS = 89_478_485  # of an image; from here on PIL warns of a decompression bomb, and the decoders of torchvision would just take the memory


def _decode_jpeg(data: bytes, channels: int) -> Tensor:
    """[3, H, W] or [1, H, W], as it is stored.  Raises RuntimeError where torchvision cannot decode it, or is not there."""
    try:
        import_torchvision()
        from torchvision.io import ImageReadMode, decode_jpeg  # here: it takes a second to import, and headers are read without it
    except ImportError as e:  # torchvision means to drop it; PIL then reads all, at two thirds of the speed
        raise RuntimeError(str(e)) from None
    mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
    found: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=mode)
    return found


# by a file's first bytes; PIL decodes the others: torchvision's decode_png ends the whole process where the pixels of a file end early
DECODERS: dict[bytes, Callable[[bytes, int], Tensor]] = {JPEG: _decode_jpeg}


def warm_up() -> None:
    """Import what decodes, for processes that are forked from this one."""
    with suppress(ImportError):
        import_torchvision()
        importlib.import_module("torchvision.io")


class PixelFormat(NamedTuple):
    """What a recipe has its images be."""

    channels: int = 3  # 3: grey becomes three equal ones
    white: int = 0  # of files of 16 bits: the value that becomes 255; 0: they are refused

    @classmethod
    def of(cls, data: Data) -> PixelFormat:
        """As [data] says."""
        return cls(data.channels, data.white)


RGB = PixelFormat()


def image(data: bytes, form: PixelFormat = RGB) -> Tensor:
    """A file -> [C, H, W] uint8 as `form` says; float32 on the scale 0..255 where it names a white.  Raises ValueError with the reason."""
    if form.channels == 3 and not _is_wide(data):
        pixels = _eight_bits(data, 3)
    else:
        pixels = values(data)
        if pixels.dtype == torch.uint16 and not form.white:
            raise ValueError("has 16 bits a channel; [data] white = 65535, or the value that is full scale, has such images read")
        if len(pixels) == 1 and form.channels == 3:
            pixels = pixels.expand(3, -1, -1)
        if len(pixels) != form.channels:
            grey = "; channels = 3 takes grey images too" if {len(pixels), form.channels} == {1, 3} else ""
            raise ValueError(f"has {len(pixels)} channel{'s' * (len(pixels) > 1)}, and [data] channels is {form.channels}{grey}")
    if not form.white:
        return pixels
    return pixels.float().mul_(255 / form.white).clamp_(max=255) if pixels.dtype == torch.uint16 else pixels.float()


def stored_jpeg(data: bytes) -> Tensor:
    """A JPEG -> RGB [3, H, W] uint8, as it is stored.  Raises ValueError where torchvision does not decode it."""
    try:
        return DECODERS[JPEG](data, 3)
    except RuntimeError as e:
        raise ValueError(str(e)) from None


def values(data: bytes) -> Tensor:
    """A file as it is: [C, H, W] uint8 or uint16, upright, transparency dropped.  Raises ValueError with the reason."""
    if npy_tiff.holds(data):
        return npy_tiff.read(data, 3 * MAX_PIXELS)
    opened = open_image(data)
    if opened.mode not in GREY_16:
        return _eight_bits(data, 1 if opened.mode in GREY else 3)
    with reasons("cannot be decoded"):
        return torch.from_numpy(np.array(container.turned(opened, container.orientation(data, opened))).astype(np.uint16))[None]


def _eight_bits(data: bytes, channels: int) -> Tensor:
    """JPEG, PNG or whatever PIL reads -> RGB [3, H, W] uint8, or of a grey one [1, H, W], turned as EXIF says.  Raises ValueError with the reason.

    Grey and palette become RGB, transparency is dropped, CMYK is converted; more than 8 bits a channel and more than MAX_PIXELS are refused.
    """
    for begin, decode in DECODERS.items():
        if data.startswith(begin) and (size := container.stated_size(data)):
            check_size(size)
            with suppress(RuntimeError):  # PIL reads some that torchvision does not, and says why it does not read the others
                stored = decode(data, channels)  # which would heed EXIF in the first segment alone
                return container.upright(stored, container.orientation(data))
    pixels = torch.from_numpy(np.array(picture(data).convert("RGB" if channels == 3 else "L")))
    return pixels.permute(2, 0, 1) if channels == 3 else pixels[None]


def picture(data: bytes) -> Image.Image:
    """An image that PIL reads, upright and of mode L or RGB.  Raises ValueError with the reason, also for one of more than 8 bits."""
    opened = open_image(data)
    if opened.mode in GREY_16:
        raise ValueError("has 16 bits a channel")
    with reasons("cannot be decoded"):
        return container.turned(opened.convert("L" if opened.mode in GREY else "RGB"), container.orientation(data, opened))


def label_map(data: bytes) -> Tensor:
    """A PNG of class numbers (grey of up to 16 bits, or palette: the palette's places) -> [H, W] int64, turned as EXIF says.  Raises ValueError."""
    opened = _open_map(data)
    with reasons("cannot be decoded"):
        numbers = torch.from_numpy(np.array(opened).astype(np.int64))
    if data[25:26] == GREY_PNG and 1 < data[24] < 8:  # Pillow spreads grey of 2 and 4 bits over 0..255
        numbers //= 255 // ((1 << data[24]) - 1)
    return container.upright(numbers, container.orientation(data, opened))


def image_header(data: bytes) -> Header:
    """Height and width as EXIF turns them, channels and bits, from the header alone.  Raises ValueError where `values` would for the header."""
    if npy_tiff.holds(data):
        return npy_tiff.header(data)
    opened = open_image(data)
    turned = container.orientation(data, opened) >= container.TURNED
    size = (opened.width, opened.height) if turned else (opened.height, opened.width)
    deep = opened.mode in GREY_16
    return Header(size, 1 if deep or opened.mode in GREY else 3, 16 if deep else 8)


def map_size(data: bytes) -> Size:
    """Height and width of a label map, from the header alone.  Raises ValueError for a picture that `label_map` does not read."""
    opened = _open_map(data)
    turned = container.orientation(data, opened) >= container.TURNED
    return (opened.width, opened.height) if turned else (opened.height, opened.width)


def resize(pixels: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
    """[C, H, W] uint8 or float32 -> [C, h, w] of the same type, bilinear or bicubic, antialiased where it shrinks."""
    batch = pixels[None]
    if pixels.stride(0) == 1:  # interleaved, as decoders give it: in one piece and marked as such it takes half the time
        batch = pixels.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size, mode=mode, antialias=True)[0]


def resize_map(labels: Tensor, size: Size) -> Tensor:
    """[H, W] -> [h, w]: the label at the middle of each new pixel."""
    rows, columns = (((torch.arange(n) + 0.5) * old / n).long() for n, old in zip(size, labels.shape))
    return labels[rows[:, None], columns]


def _is_wide(data: bytes) -> bool:
    """Whether a file is read by `values`: of 16 bits, or of any number of channels."""
    return npy_tiff.holds(data) or _is_png_16(data) or container.format_of(data) == "JPEG2000"


def _is_png_16(data: bytes) -> bool:
    return data.startswith(PNG) and data[24:25] == b"\x10"


def open_image(data: bytes) -> Image.Image:
    """Its header read by PIL, and no pixels yet.  Raises ValueError for what `values` refuses by the header."""
    opened = _open(data)
    if opened.mode not in GREY_16 and (opened.mode.startswith(DEEP) or _is_png_16(data)):
        what = f"PIL mode {opened.mode}" if opened.mode.startswith(DEEP) else "a PNG in color or with transparency"
        raise ValueError(f"has more than 8 bits a channel ({what}); these are read of grey PNGs, TIFFs and .npy files of 16 bits")
    if opened.format == "JPEG2000" and (bits := container.codestream_bits(data)) not in (8, 16 if opened.mode in GREY_16 else 8):
        raise ValueError(f"is a JPEG 2000 of {bits} bits a channel; those of 8 bits are read, and grey ones of 16")
    return opened


def _open_map(data: bytes) -> Image.Image:
    if data and not data.startswith(PNG):
        raise ValueError(f"is no PNG; it begins with {data[:12]!r}, and a label map is a PNG of class numbers")
    opened = _open(data)
    if opened.mode not in MAP_MODES:
        raise ValueError(f"is of PIL mode {opened.mode}, and a label map is a PNG of class numbers: of mode L, P or 1, or of 16 bits")
    return opened


def _open(data: bytes) -> Image.Image:
    if size := container.stated_size(data):
        check_size(size)  # before PIL warns of it
    opened = container.open_picture(data)
    check_size((opened.height, opened.width))
    return opened


def check_size(size: Size) -> None:
    """Raises ValueError for more pixels than MAX_PIXELS."""
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"has {size[0]}x{size[1]} pixels; images have at most {MAX_PIXELS}")
