"""One answer for the header, packing, training and label maps, in every format and depth that is read; every other is refused."""
from __future__ import annotations

import io
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from twinview.cli import main
from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import read_image
from twinview.data.formats import container, decode, jpeg_draft
from twinview.data.formats.decode import PixelFormat
from twinview.data.writing import prepare_sample

Picture = NDArray[np.uint8]


def photo(height: int = 96, width: int = 144) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def app1(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def exif(n: int) -> bytes:
    return app1(b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, n, 0, 0))


def xmp(n: int) -> bytes:
    return app1(b'http://ns.adobe.com/xap/1.0/\0<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/>' % n)


CASES = {  # segments behind the first two bytes -> the orientation that all agree on
    **{f"EXIF {n}": (exif(n), n) for n in range(1, 9)},
    "XMP, then EXIF 6": (xmp(1) + exif(6), 6),
    "XMP 6 alone": (xmp(6), 6),
    "EXIF 9": (exif(9), 1),
    "EXIF 0": (exif(0), 1),
    "EXIF cut short": (app1(b"Exif\0\0II*\0\x08\0\0\0\x01"), 1),
    "EXIF that is none": (app1(b"Exif\0\0" + b"\xff" * 40), 1),
    "a comment first": (b"\xff\xfe\0\x06noteX"[:8] + exif(8), 8),
    "none": (b"", 1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("plain", [False, True], ids=["torchvision", "Pillow"])
def test_header_training_and_packing_turn_a_jpeg_alike(case: str, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if plain:
        monkeypatch.setattr(decode, "DECODERS", {})
    segments, turn = CASES[case]
    jpeg = saved(photo(), "JPEG", quality=95)
    data, stored = jpeg[:2] + segments + jpeg[2:], np.array(Image.open(io.BytesIO(jpeg)))
    expected = np.array(container.turned(Image.fromarray(stored), turn))
    seen = decode.image(data).permute(1, 2, 0).numpy()
    assert decode.image_header(data).size == seen.shape[:2] == expected.shape[:2]
    assert np.abs(seen.astype(int) - expected).max() <= 2
    packed = prepare_sample._jpeg(data, (expected.shape[0] // 2, expected.shape[1] // 2), prepare_sample.Recode(quality=100))
    again = decode.image(packed).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(again - np.array(Image.fromarray(expected).resize((again.shape[1], again.shape[0]), Image.Resampling.BICUBIC))).mean() < 2
    assert jpeg_draft.full_size(data) == (None if turn != 1 else seen.shape[:2])


@pytest.mark.parametrize("n", range(1, 9))
def test_tensors_are_turned_as_pillow_turns_pictures(n: int) -> None:
    stored = photo(5, 7)
    stored.getexif()[0x0112] = n
    expected = np.array(ImageOps.exif_transpose(stored))
    assert np.array_equal(np.array(container.turned(stored, n)), expected)
    assert np.array_equal(container.upright(torch.from_numpy(np.array(stored)).permute(2, 0, 1), n).permute(1, 2, 0).numpy(), expected)


def test_a_turned_label_map_is_turned_like_its_image() -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    numbers = np.arange(24, dtype=np.uint8).reshape(4, 6)
    data = saved(Image.fromarray(numbers), "PNG", exif=tag)
    assert decode.map_size(data) == (6, 4) and np.array_equal(decode.label_map(data).numpy(), np.rot90(numbers, -1))
    assert decode.image_header(data).size == (6, 4) and decode.image(data).shape[1:] == (6, 4)


# ---- bits
def tiff(bits: int, photometric: int = 1) -> bytes:
    """16 x 16 grey, its left half 0 and its right half of all bits."""
    pixels = (b"\0" * bits + b"\xff" * bits) * 16
    tags = [(256, 16), (257, 16), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 16), (279, len(pixels))]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, v) for tag, v in tags) + b"\0\0\0\0"
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + ifd


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiffs_of_few_bits_are_of_full_scale(bits: int) -> None:
    pytest.importorskip("tifffile")
    seen = decode.image(tiff(bits))
    assert decode.image_header(tiff(bits)) == ((16, 16), 1, 8)
    assert (seen[..., :8] == 0).all() and (seen[..., 8:] == 255).all()


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_tiffs_of_odd_bits_are_refused(bits: int) -> None:
    pytest.importorskip("tifffile")
    for read in (decode.image_header, decode.image):
        with pytest.raises(ValueError, match=f"is a TIFF of {bits} bits a sample"):
            read(tiff(bits))


def test_a_tiff_of_ycbcr_is_read_of_jpegs_alone() -> None:
    pytest.importorskip("imagecodecs")
    tifffile = pytest.importorskip("tifffile")
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    for read in (decode.image_header, decode.image):
        with pytest.raises(ValueError, match="is a TIFF of YCbCr that is no JPEG"):
            read(saved(red.convert("YCbCr"), "TIFF"))
    file = io.BytesIO()
    tifffile.imwrite(file, np.array(red), photometric="rgb", compression="jpeg", compressionargs={"level": 95})
    assert (decode.image(file.getvalue())[:, 8, 8] - torch.tensor([255, 0, 0])).abs().max() < 4


def grey_png(bits: int, rows: NDArray[np.uint8], kind: int = 0) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    spread = np.unpackbits(rows[..., None], axis=2)[..., -bits:].reshape(len(rows), -1)
    lines = b"".join(b"\0" + np.packbits(line).tobytes() for line in spread)
    palette = chunk(b"PLTE", bytes(range(48))) if kind == 3 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", rows.shape[1], len(rows), bits, kind, 0, 0, 0))
    return container.PNG + header + palette + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", [0, 3], ids=["grey", "palette"])
def test_label_maps_of_any_depth_hold_their_numbers(bits: int, kind: int) -> None:
    numbers = (np.arange(64) % (1 << bits) % 16).astype(np.uint8).reshape(8, 8)
    data = grey_png(bits, numbers, kind)
    assert np.array_equal(decode.label_map(data).numpy(), numbers)
    if kind == 0:
        full = (numbers.astype(int) * 255 // ((1 << bits) - 1)).astype(np.uint8)
        assert np.array_equal(decode.image(data)[0].numpy(), full), "as an image it is of full scale"


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF", "WEBP"])
def test_a_label_map_is_a_png(kind: str) -> None:
    for read in (decode.label_map, decode.map_size):
        with pytest.raises(ValueError, match="is no PNG; it begins with .*, and a label map is a PNG of class numbers"):
            read(saved(Image.new("L", (8, 8)), kind))


# ---- formats
FRAMES = [Image.new("RGB", (48, 36), color) for color in ("red", "blue")]


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("a.avif", "AVIF", {"quality": 90}), ("a.gif", "GIF", {"save_all": True, "append_images": FRAMES[1:]}), ("a.jp2", "JPEG2000", {}),
        ("a.j2k", "JPEG2000", {"no_jp2": True}), ("a.jfif", "JPEG", {}), ("a.mpo", "MPO", {"save_all": True, "append_images": FRAMES[1:]}),
        ("a.webp", "WEBP", {"save_all": True, "append_images": FRAMES[1:], "lossless": True}), ("a.heic", "HEIF", {}),
        ("a.png", "PNG", {"save_all": True, "append_images": FRAMES[1:]}),
    ],
)
def test_formats_are_read_in_place_and_packed(tmp_path: Path, name: str, kind: str, options: dict[str, Any]) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(saved(FRAMES[0], kind, **options))
    assert main(["shards", "pack", "images", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    for source in (f"images:{tmp_path / 'in'}", str(tmp_path / "out")):
        seen = read_image(open_shards(source), 0)
        assert seen.shape == (3, 36, 48) and (seen[:, 18, 24].int() - torch.tensor([255, 0, 0])).abs().max() < 8, "the first frame"
    assert main(["shards", "check", str(tmp_path / "out")]) == 0


def test_heic_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(ValueError, match=r"is of format HEIF\. `pip install 'twinview\[heic\]'` installs what reads it"):
        decode.image(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic")


def test_jpeg_2000_of_other_depths_is_refused_and_grey_of_16_bits_wants_a_white() -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    data = saved(Image.fromarray(deep), "JPEG2000", irreversible=False)
    assert decode.image_header(data) == ((8, 8), 1, 16) and np.array_equal(decode.values(data)[0].numpy(), deep)
    with pytest.raises(ValueError, match=r"has 16 bits a channel; \[data\] white"):
        decode.image(data)
    assert decode.image(data, PixelFormat(white=65535)).shape == (3, 8, 8)
    at = data.find(container.CODESTREAM) + 4 + 38
    for bits in (4, 12):
        with pytest.raises(ValueError, match=f"is a JPEG 2000 of {bits} bits a channel"):
            decode.image_header(data[:at] + bytes([bits - 1]) + data[at + 1 :])


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n{} loop\nshowpage\n",  # Pillow would start Ghostscript
        b"\xc5\xd0\xd3\xc6" + bytes(200), b"%PDF-1.7", b"\x89HDF\r\n\x1a\n", b"GRIB" + bytes(20), b"P6 1 1 255\n\0\0\0", b"SIMPLE  =                    T",
        b"\0\0\1\0\1\0" + bytes(40), b"8BPS\0\1" + bytes(40), b"qoif" + bytes(20), b"DDS " + bytes(124), b"\xd7\xcd\xc6\x9a" + bytes(60),
    ],
)
def test_nothing_but_the_promised_formats_is_opened(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", never)
    for read in (decode.image, decode.values, decode.image_header, decode.picture):
        with pytest.raises(ValueError, match="is no image; it begins with"):
            read(data)
    with pytest.raises(ValueError, match="is no PNG"):
        decode.label_map(data)


# ---- metadata of any size
def test_a_png_with_large_metadata_is_read() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "y" * 1_500_000, zip=True)
    text.add_text("prompt", "z" * 2_000_000)
    tag = Image.Exif()
    tag[0x0112] = 6
    plain = decode.image(saved(photo(36, 48), "PNG"))
    for options in ({"icc_profile": b"z" * 1_500_000}, {"pnginfo": text}, {"icc_profile": b"z" * 1_500_000, "pnginfo": text}):
        data = saved(photo(36, 48), "PNG", **options)
        assert torch.equal(decode.image(data), plain) and decode.image_header(data).size == (36, 48)
        turned = saved(photo(36, 48), "PNG", exif=tag, **options)
        assert decode.image_header(turned).size == (48, 36) and torch.equal(decode.image(turned), container.upright(plain, 6))
    labels = saved(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)), "PNG", pnginfo=text)
    assert decode.label_map(labels).max() == 63


def test_exif_behind_the_pixels_of_a_png_counts_and_needs_none_of_them() -> None:
    data, body = saved(photo(36, 48), "PNG"), b"eXIfII*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    turned = data[:-12] + chunk + data[-12:]
    assert decode.image_header(turned).size == (48, 36) and decode.image(turned).shape == (3, 48, 36)
    broken = data[:-12] + chunk[:-1] + bytes([chunk[-1] ^ 1]) + data[-12:]
    assert decode.image_header(broken).size == (36, 48) and torch.equal(decode.image(broken), decode.image(data))


def test_a_jpeg_with_large_metadata_is_read() -> None:
    jpeg = saved(photo(36, 48), "JPEG")
    data = jpeg[:2] + app1(b"http://ns.adobe.com/xap/1.0/\0" + b"y" * 60_000) * 40 + jpeg[2:]
    assert torch.equal(decode.image(data), decode.image(jpeg)) and decode.image_header(data).size == (36, 48)
