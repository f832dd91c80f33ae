"""Pictures of every kind come out as RGB bytes, label maps as class numbers; what cannot is refused with the reason."""
from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import BadSample, read_class, read_image, read_map
from twinview.data.formats import decode
from twinview.errors import DataError

Write = Callable[[str, Mapping[str, bytes]], Path]


def smooth(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)).convert(mode)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def by_pil(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


KINDS = [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK")]
KINDS += [("PNG", mode) for mode in ("RGB", "L", "RGBA", "LA", "P", "1")] + [("WEBP", "RGB"), ("BMP", "RGB"), ("GIF", "P")]


@pytest.mark.parametrize(("kind", "mode"), KINDS)
@pytest.mark.parametrize("by", ["torchvision", "PIL"])
def test_every_kind_becomes_rgb(kind: str, mode: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(smooth(mode), kind)
    if by == "PIL":
        monkeypatch.setattr(decode, "DECODERS", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = decode.image(data)
    assert found.dtype == torch.uint8 and found.shape == (3, 24, 40) == (3, *decode.image_header(data)[0])
    assert (found.int() - by_pil(data).int()).abs().max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_as_exif_says(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(smooth(), kind, exif=exif)
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    found = decode.image(data)
    assert found.shape[1:] == (upright.height, upright.width) == decode.image_header(data)[0]
    assert (found.permute(1, 2, 0).int() - torch.from_numpy(np.array(upright)).int()).abs().max() <= 1


def test_what_is_no_picture_is_refused_with_the_reason() -> None:
    deep = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    for data, said in (
        (b"", "is an empty file"),
        (b"hello", "is no image; it begins with b'hello'"),
        (encoded(smooth(), "JPEG")[:700], "cannot be decoded: image file is truncated"),
        (encoded(smooth(), "PNG")[:700], "cannot be"),
        (encoded(deep, "PNG"), "has 16 bits a channel"),
        (encoded(deep, "TIFF"), "has 16 bits a channel; [data] white = 65535"),
        (encoded(deep, "PPM"), "is no image; it begins with b'P5"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)) as caught:
            decode.image(data)
        assert "\n" not in str(caught.value)


def test_label_maps_keep_their_numbers() -> None:
    numbers = np.arange(24 * 40).reshape(24, 40) % 19
    palette = Image.fromarray(numbers.astype(np.uint8)).convert("P")
    palette = Image.fromarray(numbers.astype(np.uint8), "P") if palette.mode != "P" else palette
    palette.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    for picture in (Image.fromarray(numbers.astype(np.uint8)), palette):
        found = decode.label_map(encoded(picture, "PNG"))
        assert found.dtype == torch.int64 and torch.equal(found, torch.from_numpy(numbers)), picture.mode
    wide = np.arange(24 * 40).reshape(24, 40) * 60
    assert torch.equal(decode.label_map(encoded(Image.fromarray(wide.astype(np.uint16)), "PNG")), torch.from_numpy(wide))
    with pytest.raises(ValueError, match="is of PIL mode RGB, and a label map is a PNG of class numbers"):
        decode.label_map(encoded(smooth(), "PNG"))


def test_a_map_is_resized_as_its_image_is() -> None:
    labels = (torch.arange(40)[None] >= 13).expand(24, 40).long()
    image = (labels * 200).to(torch.uint8).expand(3, 24, 40)
    for size in ((12, 20), (24, 40), (48, 80), (7, 11)):
        small, resized = decode.resize_map(labels, size), decode.resize(image, size)[0]
        assert small.shape == size and ((small == 1) == (resized > 100)).float().mean() >= 1 - 1 / size[1]
    assert torch.equal(decode.resize_map(labels, (24, 40)), labels)


def test_the_fields_of_a_sample(write: Write) -> None:
    grey, wrong = encoded(Image.fromarray(np.full((24, 40), 3, np.uint8)), "PNG"), encoded(smooth(), "PNG")
    files = {
        "a.jpg": encoded(smooth(), "JPEG"), "a.png": grey, "a.cls": b"7\n",
        "b.png": wrong, "b.seg.png": grey, "b.cls": b"-1",
        "c.png": wrong,
        "d.json": b"{}", "d.cls": b"1",
        "e.jpg": wrong, "e.seg.png": wrong,
        "f.jpg": b"broken",
    }
    path = write("x.tar", files)
    shards = open_shards(str(path))
    assert read_image(shards, 0).shape == (3, 24, 40) and read_class(shards, 0) == 7
    assert all((read_map(shards, i) == 3).all() for i in (0, 1))
    assert torch.equal(read_image(shards, 4), by_pil(wrong)), "by what the bytes are, not by the name"
    reads: list[tuple[Any, int, type[Exception], str]] = [
        (read_class, 1, DataError, f"{path}, sample 'b': has no class; its field cls holds b'-1'."),
        (read_class, 2, DataError, "sample 'c': has no class (field cls); it has png."),
        (read_map, 2, DataError, "sample 'c': has no label map (seg.png, or png beside a jpg); it has png."),
        (read_map, 4, DataError, "sample 'e': its label map is of PIL mode RGB, and"),
        (read_image, 3, BadSample, "sample 'd': has no image (jpg, jpeg, png, webp, bmp, tif, tiff, npy, jpe, jfif, mpo, gif, avif, jp2, j2k, jpx, jpf, heic, heif); it has json, cls"),
        (read_image, 5, BadSample, f"{path}, sample 'f': is no image; it begins with b'broken'"),
    ]
    for read, i, kind, said in reads:
        with pytest.raises(kind, match=re.escape(said)) as caught:
            read(shards, i)
        assert "\n" not in str(caught.value)
