"""TIFF and .npy files of any number of channels come out value for value; what is no image is refused with the reason, before memory is taken."""
from __future__ import annotations

import io
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from twinview.data.formats import container, decode, npy_tiff
from twinview.data.formats.decode import PixelFormat

DEEP: Any = np.random.default_rng(0).integers(0, 65536, (5, 20, 30), np.uint16)  # [C, H, W]
FLAT = DEEP.astype(np.uint8)
LAST = np.moveaxis(DEEP, 0, 2)


def tiff(pixels: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def pages(planes: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for plane in planes:
            writer.write(plane, metadata=None)
    return file.getvalue()


def by_pillow(planes: Any) -> bytes:
    file = io.BytesIO()
    first, *rest = [Image.fromarray(plane) for plane in planes]
    first.save(file, "TIFF", save_all=True, append_images=rest, compression="tiff_lzw")
    return file.getvalue()


def npy(pixels: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


FILES: dict[str, tuple[bytes, Any]] = {
    "pages": (pages(DEEP), DEEP),
    "pages with a description": (tiff(DEEP, photometric="minisblack"), DEEP),
    "pages by Pillow": (by_pillow(DEEP), DEEP),
    "ImageJ": (tiff(DEEP, imagej=True, metadata={"axes": "CYX"}), DEEP),
    "OME": (tiff(DEEP, ome=True, metadata={"axes": "CYX"}), DEEP),
    "samples beside one another": (tiff(LAST, planarconfig="contig", photometric="minisblack"), DEEP),
    "samples by plane": (tiff(FLAT[:3], planarconfig="separate", photometric="rgb"), FLAT[:3]),
    "RGB": (tiff(LAST[..., :3], photometric="rgb"), DEEP[:3]),
    "transparent": (tiff(LAST[..., :4], photometric="rgb", extrasamples=["unassalpha"]), DEEP[:3]),
    "grey": (tiff(DEEP[0]), DEEP[:1]),
    "grey of 8 bits": (tiff(FLAT[0]), FLAT[:1]),
    "LZW": (tiff(DEEP, compression="lzw", predictor=True), DEEP),
    "tiles": (tiff(DEEP, tile=(16, 16), compression="deflate"), DEEP),
    "the other byte order": (tiff(DEEP, byteorder=">"), DEEP),
    "BigTIFF": (tiff(DEEP, bigtiff=True), DEEP),
    "npy": (npy(LAST), DEEP),
    "npy of one channel": (npy(DEEP[0]), DEEP[:1]),
    "npy of 8 bits": (npy(np.moveaxis(FLAT, 0, 2)), FLAT),
    "npy by columns, the other byte order": (npy(np.asfortranarray(LAST).astype(">u2")), DEEP),
}


@pytest.mark.parametrize("name", FILES)
def test_value_for_value(name: str) -> None:
    data, expected = FILES[name]
    found = decode.values(data)
    assert found.dtype == (torch.uint16 if expected.dtype == np.uint16 else torch.uint8)
    assert np.array_equal(found.numpy(), expected)
    assert decode.image_header(data) == ((20, 30), len(expected), 8 * expected.itemsize)


def test_deep_images_become_float32_on_the_scale_of_bytes() -> None:
    data = npy(np.moveaxis(DEEP // 8, 0, 2))  # 0 .. 8191
    for white in (65535, 4095):
        found = decode.image(data, PixelFormat(5, white))
        assert found.dtype == torch.float32
        assert np.allclose(found.numpy(), np.minimum(DEEP // 8 / white, 1) * 255, rtol=1e-6)
    assert torch.equal(decode.image(npy(FLAT[0]), PixelFormat(1, 4095)), torch.from_numpy(FLAT[:1]).float()), "8 bits stay as they are"
    assert decode.image(npy(FLAT[0]), PixelFormat(1)).dtype == torch.uint8


def encoded(pixels: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def test_grey_of_any_kind() -> None:
    """With three channels just as before, with one its values alone."""
    for kind, pixels in (("PNG", FLAT[0]), ("BMP", FLAT[0]), ("JPEG", FLAT[0])):
        data = encoded(pixels, kind)
        color, grey = decode.image(data), decode.image(data, PixelFormat(1))
        assert color.dtype == grey.dtype == torch.uint8 and torch.equal(color, grey.expand(3, -1, -1))
        assert kind == "JPEG" or np.array_equal(grey[0].numpy(), pixels)
        assert torch.equal(decode.image(data, PixelFormat(1, 4095)), grey.float())
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode.values(encoded(DEEP[0], "PNG", exif=exif))
    assert np.array_equal(turned.numpy(), DEEP[:1, ::-1].transpose(0, 2, 1))
    assert torch.equal(decode.image(encoded(DEEP[0], "PNG"), PixelFormat(3, 65535))[2], decode.image(encoded(DEEP[0], "PNG"), PixelFormat(1, 65535))[0])


def png_16_color() -> bytes:
    """A 16-bit RGB PNG, which Pillow would cut to 8 bits without a word."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in LAST[..., :3])
    return container.PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


HUGE = npy_tiff.NPY + b"\x01\x00v\x00" + b"{'descr': '<u2', 'fortran_order': False, 'shape': (100000, 100000), }".ljust(117) + b"\n"
STRANGE = npy_tiff.NPY + b"\x01\x00v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (True, 16), }".ljust(117) + b"\n" + bytes(16)
REFUSED: dict[str, tuple[bytes, PixelFormat, str]] = {
    "deep, by default": (tiff(DEEP[0]), PixelFormat(), "has 16 bits a channel; [data] white = 65535, or the value that is full scale, has such images read"),
    "deep, one channel": (encoded(DEEP[0], "PNG"), PixelFormat(1), "has 16 bits a channel; [data] white = 65535"),
    "too many channels": (npy(LAST), PixelFormat(3, 65535), "has 5 channels, and [data] channels is 3"),
    "color for grey": (encoded(LAST[..., :3].astype(np.uint8), "JPEG"), PixelFormat(1), "has 3 channels, and [data] channels is 1; channels = 3 takes grey images too"),
    "deep color PNG": (png_16_color(), PixelFormat(3, 65535), "has more than 8 bits a channel (a PNG in color or with transparency); these are read of grey PNGs, TIFFs and .npy"),
    "pages of several sizes": (pages([DEEP[0], DEEP[1, :10]]), PixelFormat(2, 9), "is a TIFF of 2 images of several sizes or types; one file holds one image"),
    "two axes": (tiff(DEEP[None].repeat(2, 0), imagej=True), PixelFormat(5, 9), "is a TIFF of axes ZCYX (2, 5, 20, 30); one axis beside height and width is its channels"),
    "white is 0": (tiff(FLAT[0], photometric="miniswhite"), PixelFormat(1), "is a TIFF that has the photometric interpretation 0"),
    "palette": (tiff(FLAT[0], photometric="palette", colormap=np.zeros((3, 256), np.uint16)), PixelFormat(3), "photometric interpretation 3"),
    "turned": (tiff(FLAT[0], extratags=[(274, 3, 1, 6, True)]), PixelFormat(1), "is a TIFF that is turned by its orientation tag"),
    "float TIFF": (tiff(DEEP[0].astype(np.float32)), PixelFormat(1, 9), "holds float32; images hold uint8 or uint16"),
    "float npy": (npy(DEEP[0].astype(np.float32)), PixelFormat(1, 9), "holds float32; images hold uint8 or uint16"),
    "objects": (npy(np.array([[{}]], dtype=object)), PixelFormat(1, 9), "holds object; images hold uint8 or uint16"),
    "four axes": (npy(LAST[None]), PixelFormat(5, 9), "is of shape (1, 20, 30, 5); an image is [height, width] or [height, width, channels]"),
    "no pixels": (npy(LAST[:0]), PixelFormat(5, 9), "is of shape (0, 30, 5)"),
    "a cut npy": (npy(LAST)[:-1], PixelFormat(5, 9), "is no whole .npy file: 5999 bytes follow its header, which says 6000"),
    "an npy that states a size": (HUGE, PixelFormat(1, 9), "is no whole .npy file: 0 bytes follow its header, which says 20000000000"),
    "an npy of a shape that is no numbers": (STRANGE, PixelFormat(1, 9), "cannot be decoded: "),
    "an npy without a header": (npy_tiff.NPY, PixelFormat(1, 9), "is no whole .npy file: "),
    "a cut TIFF": (tiff(DEEP[0])[:-100], PixelFormat(1, 9), "cannot be "),
    "a cut compressed TIFF": (tiff(DEEP[0], compression="lzw")[:500], PixelFormat(1, 9), "cannot be "),
    "the beginning of a TIFF": (b"II*\0", PixelFormat(1, 9), "cannot be read as a TIFF: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name: str, caplog: pytest.LogCaptureFixture) -> None:
    data, form, said = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        decode.image(data, form)
    assert "\n" not in str(caught.value) and not caplog.records


def test_a_tiff_that_states_a_size_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 999)
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", lambda *_, **__: pytest.fail("was decoded"))
    with pytest.raises(ValueError, match=re.escape("has 5 x 20 x 30 values (channels, height, width); images have at most 2997")):
        decode.values(tiff(DEEP, compression="lzw"))
    with pytest.raises(ValueError, match="images have at most 2997"):
        decode.values(npy(LAST))


def test_damage_raises_nothing_else() -> None:
    """400 files with a few random bytes each: an image or a reason."""
    rng, kinds = np.random.default_rng(0), Counter[str]()
    for n in range(400):
        data = bytearray([tiff(DEEP[:2], compression="lzw"), pages(FLAT[:2]), npy(LAST)][n % 3])
        for at in rng.integers(0, min(len(data), 600), 3):
            data[at] = rng.integers(256)
        try:
            assert decode.values(bytes(data)).ndim == 3
            kinds["read"] += 1
        except ValueError as e:
            assert "\n" not in str(e)
            kinds["refused"] += 1
    assert min(kinds["read"], kinds["refused"]) > 50


def test_without_what_reads_tiffs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=re.escape("is a TIFF. `pip install 'twinview[tiff]'` installs what reads it")):
        decode.image(tiff(FLAT[0]))


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_resizing_takes_each_channel_by_itself(channels: int, kind: torch.dtype) -> None:
    pixels = (torch.rand(channels, 20, 30, generator=torch.Generator().manual_seed(0)) * 255).to(kind)
    found = decode.resize(pixels, (7, 11))
    assert found.dtype == kind and found.shape == (channels, 7, 11)
    each: Callable[[int], torch.Tensor] = lambda c: decode.resize(pixels[c : c + 1].expand(3, -1, -1), (7, 11))[0]  # noqa: E731
    assert all((found[c].float() - each(c).float()).abs().max() <= (1 if kind == torch.uint8 else 1e-3) for c in range(channels))
