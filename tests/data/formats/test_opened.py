"""A picture's size before its pixels, and JPEGs in memory that is kept: the pixels of `decode.image`."""
from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinview.data.formats import container, decode
from twinview.data.formats.opened import JpegMemory, in_one_piece, opened


def jpeg(seed: int = 0, size: tuple[int, int] = (61, 43), mode: str = "RGB", **options: Any) -> bytes:
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
KINDS: dict[str, dict[str, Any]] = {
    **{f"sampling {n}": {"subsampling": n, "quality": 60 + n} for n in range(3)},
    "progressive": {"progressive": True}, "one pixel": {"size": (1, 1)}, "narrow": {"size": (500, 3)}, "turned": {"exif": EXIF},
    "grey": {"mode": "L"}, "kept rgb": {"keep_rgb": True}, "restarts": {"restart_marker_blocks": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_size(kind: str) -> None:
    memory = JpegMemory()
    for seed in range(3):
        data = jpeg(seed, **KINDS[kind])
        expected, found = in_one_piece(decode.image(data)), opened(data, memory)
        assert found.size == expected.shape[:2] and found.held == len(data) and np.array_equal(found.pixels(), expected)


def test_simplejpeg_decodes_what_every_decoder_decodes_alike() -> None:
    pytest.importorskip("simplejpeg")
    memory = JpegMemory()
    data = jpeg(size=(640, 480))
    first = memory.pixels(data, container.Frame((480, 640), True))
    again = memory.pixels(jpeg(1, size=(64, 48)), container.Frame((48, 64), True))
    assert np.shares_memory(first, again), "the same memory again"
    usual = {kind: frame.usual for kind, options in KINDS.items() if (frame := container.frame(jpeg(**options)))}
    assert not usual["grey"] and all(usual[f"sampling {n}"] for n in range(3)) and usual["progressive"]


@pytest.mark.parametrize("end", [300, 700, -2])
def test_damage_is_what_it_is_to_others(end: int) -> None:
    data = jpeg(4, size=(200, 100), quality=90)[:end]
    try:
        expected = in_one_piece(decode.image(data))
    except ValueError as e:
        with pytest.raises(ValueError) as caught:
            opened(data, JpegMemory()).pixels()
        assert str(caught.value) == str(e)
    else:
        assert np.array_equal(opened(data, JpegMemory()).pixels(), expected)


def test_other_files_are_decoded_at_once_and_too_many_pixels_refused_by_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(file, "PNG")
    found = opened(file.getvalue(), JpegMemory())
    assert found.size == (4, 5) and found.held == 60 and np.array_equal(found.pixels().ravel(), np.arange(60))
    assert container.frame(jpeg(mode="CMYK")) is None and container.frame(b"") is None
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match=r"has 43x61 pixels; images have at most 100"):
        opened(jpeg(), JpegMemory())
