"""What a picture's bytes are before its pixels are decoded: its format, its size, how it is turned.

Only formats that are promised here are ever opened, whatever a file is called: Pillow knows some forty, and starts programs for a few of them.
"""
from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from twinview.data.formats.npy_tiff import reasons
from twinview.values import Size

PNG, JPEG, CODESTREAM = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\x4f\xff\x51"
STARTS = {  # first bytes -> Pillow's name of the format; TIFF and .npy are read by `npy_tiff`
    JPEG: "JPEG", PNG: "PNG", b"BM": "BMP", b"GIF87a": "GIF", b"GIF89a": "GIF", b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000", CODESTREAM: "JPEG2000",
}
AVIF = {b"avif", b"avis"}  # brands of the container that HEIC has too
HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
INSTALL = {"HEIF": "`pip install 'twinview[heic]'` installs what reads it", "AVIF": "`pip install --upgrade pillow` installs what reads it"}
NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # chunks of a PNG that its pixels are made of
NOTES = 0xE1  # the marker of a JPEG's EXIF and XMP
ORIENTATION = 0x0112  # EXIF's tag
FRAMES = (0xC0, 0xC1, 0xC2)  # markers of baseline, extended and progressive frames: what every decoder of JPEGs knows
SAMPLINGS = (0x11, 0x21, 0x22)  # of brightness to color: 4:4:4, 4:2:2, 4:2:0; of others, decoders of other years interpolate colors otherwise
TURNED = 5  # from this orientation on, height and width change places
UPRIGHT = {  # orientation -> what Pillow does to turn the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}


def format_of(data: bytes) -> str | None:
    """Pillow's name of a file's format, by its first bytes; None for what is not promised."""
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4], "big"), 256), 4))}
        return "AVIF" if brands & AVIF else "HEIF" if brands & HEIC else None
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in STARTS.items() if data.startswith(start)), None)


def open_picture(data: bytes) -> Image.Image:
    """Its header read by Pillow, and no pixels yet; of several frames the first.  Raises ValueError for what is no promised format, or damaged."""
    if not data:
        raise ValueError("is an empty file")
    kind = format_of(data)
    if kind is None:
        raise ValueError(f"is no image; it begins with {data[:12]!r}")
    if not _readable(kind):
        raise ValueError(f"is of format {kind}. {INSTALL.get(kind, 'This Pillow does not read it')}")
    try:
        with reasons("cannot be opened", (UnidentifiedImageError,)):
            return Image.open(io.BytesIO(_bare_png(data) if kind == "PNG" else data), formats=[kind])
    except UnidentifiedImageError:
        raise ValueError(f"cannot be opened: it begins as {kind}, and its header is damaged") from None


def _readable(kind: str) -> bool:
    """Whether Pillow reads the format; HEIC where its package is installed."""
    if kind == "HEIF" and kind not in Image.OPEN:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            return False
        register_heif_opener()
    if kind not in Image.OPEN:
        Image.init()
    return kind in Image.OPEN


def orientation(data: bytes, opened: Image.Image | None = None) -> int:
    """How a picture is to be turned, 1 to 8 as EXIF counts, 1 for none: the one answer for headers, packing, training and label maps.

    As Pillow finds it, in EXIF or else in XMP; of PNGs in EXIF alone.  1 where the tag says anything else, or the metadata is damaged.
    `opened` may be left out: a JPEG without metadata needs no Pillow.
    """
    if data.startswith(JPEG) and not any(marker == NOTES for marker, _ in _segments(data)):
        return 1
    opened = opened or open_picture(data)
    if data.startswith(PNG) and "exif" not in opened.info:  # asked for it, Pillow would decode all pixels to look behind them
        return 1
    try:
        found = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # of damaged metadata nearly any
        return 1
    return found if isinstance(found, int) and found in UPRIGHT else 1


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """A picture upright."""
    return picture if orientation == 1 else picture.transpose(UPRIGHT[orientation])


def upright(pixels: Tensor, orientation: int) -> Tensor:
    """[..., H, W] upright, as `turned` does it."""
    if orientation >= TURNED:
        pixels = pixels.transpose(-1, -2)
    flips = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}.get(orientation, ())
    return pixels.flip(flips) if flips else pixels


def stated_size(data: bytes) -> Size | None:
    """Height and width, as stored, in the header of a PNG or JPEG; None where there is none.  Takes 1 us, where Pillow takes 50 to open a file."""
    if data.startswith(PNG):
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    for marker, at in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 9 <= len(data):  # a frame header: SOF0..SOF15
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
    return None


class Frame(NamedTuple):
    """What the header of a JPEG says."""

    size: Size  # as it is stored
    usual: bool  # in color, and sampled so that every decoder gives the same pixels


def frame(data: bytes) -> Frame | None:
    """Of a JPEG of 8 bits, grey or in three channels; None of whatever else."""
    for marker, at in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if marker not in FRAMES or at + 19 > len(data) or data[at + 4] != 8 or data[at + 9] not in (1, 3):
                return None
            size = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            usual = data[at + 9] == 3 and data[at + 11] in SAMPLINGS and data[at + 14] == data[at + 17] == 0x11
            return Frame(size, usual) if min(size) else None
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, offset) of each segment of a JPEG before its pixels."""
    at = 2 if data.startswith(JPEG) else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        yield marker, at
        at += 2 if 0xD0 <= marker <= 0xD9 or marker == 0x01 else 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def codestream_bits(data: bytes) -> int:
    """The most bits of a component of a JPEG 2000 file, by its SIZ marker; 0 where there is none."""
    at = data.find(CODESTREAM) + 4
    count = int.from_bytes(data[at + 36 : at + 38], "big") if at >= 4 else 0
    return max((1 + (data[at + 38 + 3 * n] & 0x7F) for n in range(count) if at + 38 + 3 * n < len(data)), default=0)


def _bare_png(data: bytes) -> bytes:
    """A PNG without what its pixels do not need: metadata of any size, further frames.  EXIF stays, before the pixels, where it is whole.

    Pillow refuses sound pictures for a text or a color profile of more than a megabyte.  What is damaged stays as it is, for Pillow to say.
    """
    parts, exif, dropped, at = list[bytes](), b"", False, len(PNG)
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + size
        if end > len(data):
            break
        if kind in NEEDED:
            parts.append(data[at:end])
        else:
            dropped = True
            if kind == b"eXIf" and zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big"):
                exif = data[at:end]
        at = end
        if kind == b"IEND":
            break
    if not dropped:
        return data
    rest = b"" if parts and parts[-1][4:8] == b"IEND" else data[at:]  # of a file that was cut short
    return b"".join([PNG, *parts[:1], exif, *parts[1:], rest])
