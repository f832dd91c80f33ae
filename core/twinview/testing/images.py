"""The shards that parts are tried on: small smooth pictures of many shapes, with classes and label maps."""
from __future__ import annotations

import atexit
import functools
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from twinview.data.formats.fields import MAP_FIELD
from twinview.data.store.sample import Sample
from twinview.data.writing.writer import Options, write_shards

COUNT, CLASSES = 24, 3
SHAPES = ((56, 80), (64, 64), (80, 48), (72, 96))  # height, width


@functools.cache
def workplace() -> Path:
    """A folder for all that is tried in this process; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="twinview-testing-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def small_shards() -> str:
    """The folder of shards: 24 pictures in three shards, `cls` 0 to 2, a label map of the same numbers."""
    out = workplace() / "shards"
    metadata = {"classes": [f"class {number}" for number in range(CLASSES)]}
    write_shards(_samples(), out, total=COUNT, options=Options(shard_size=8), name="small", what="draw", metadata=metadata)
    return str(out)


def _samples() -> Iterator[Sample]:
    for number in range(COUNT):
        rng = np.random.default_rng(number)
        height, width = SHAPES[number % len(SHAPES)]
        coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        labels = Image.fromarray((coarse[..., 0] // 86).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        yield Sample(f"small-{number:03}", {"jpg": _bytes(picture, "JPEG"), "cls": str(number % CLASSES).encode(), MAP_FIELD: _bytes(labels, "PNG")})


def _bytes(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()
