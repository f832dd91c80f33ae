"""The embedded scenes as shards: `scenes:train` and `scenes:val`, drawn on first use into a cache folder.

Run as a program it draws its share of the scenes to stdout: processes of their own, whatever threads the asking one has.
"""
from __future__ import annotations

import fcntl
import io
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from PIL import Image

from twinview.data.scenes import street as drawing
from twinview.errors import DataError, closest
from twinview.machine import cores

if TYPE_CHECKING:
    from twinview.data.store.sample import Sample
    from twinview.data.writing.writer import Summary
    from twinview.values import Size
from twinview.paths import cache

SIZE = (160, 240)  # height, width
SPLITS = {"train": (1600, 0), "val": (200, 1_000_000)}  # images, seed of the first
SHARD_SIZE = 200
QUALITY = 95  # of the JPEGs
LENGTHS = struct.Struct("<II")  # bytes of an image and of its label map, on the pipe


def scenes(split: str) -> Path:
    """The folder of a split's shards, drawn where this machine has not drawn it yet; another process that asks meanwhile waits.

    Raises DataError for an unknown split or a cache folder that cannot be written.
    """
    if split not in SPLITS:
        raise DataError(f"scenes:{split}: there is no such split.{closest(split, SPLITS)}")
    count, seed = SPLITS[split]
    folder = cache() / f"scenes-{drawing.VERSION}-{SIZE[0]}x{SIZE[1]}-q{QUALITY}-{split}-{count}"
    if not folder.is_dir():
        with _locked(folder):
            if not folder.is_dir():
                write_scenes(folder, count=count, seed=seed, size=SIZE)
    return folder


def write_scenes(out: Path, *, count: int, seed: int = 0, size: Size = SIZE) -> Summary:
    """Draw `count` scenes of `size` (height, width), seeds from `seed` on, into shards in OUT, on all cores.  Raises DataError."""
    from twinview.data.writing.writer import Options, write_shards

    metadata = {"classes": drawing.CLASSES, "drawing": drawing.VERSION, "seed": seed, "size": size}
    options = Options(shard_size=SHARD_SIZE)
    return write_shards(_drawn(count, seed, size), out, total=count, options=options, name="scenes", what="draw scenes", metadata=metadata)


def _drawn(count: int, seed: int, size: Size) -> Iterator[Sample]:
    """Scenes in order; process p of P draws every P-th, and waits where its pipe is full."""
    from twinview.data.formats.fields import MAP_FIELD
    from twinview.data.store.sample import Sample

    processes = min(cores(), count)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "twinview.data.scenes.shards", str(processes), str(seed + count), *map(str, size)]
    artists = [subprocess.Popen([*command, str(seed + p)], stdout=subprocess.PIPE, env=environment) for p in range(processes)]
    try:
        for i in range(count):
            pipe = cast(IO[bytes], artists[i % processes].stdout)
            lengths = LENGTHS.unpack(_exactly(pipe, LENGTHS.size))
            image, labels = (_exactly(pipe, length) for length in lengths)
            yield Sample(f"{seed + i:07}", {"jpg": image, MAP_FIELD: labels})
    finally:
        for artist in artists:
            artist.kill()
            artist.communicate()


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) != length:
        raise RuntimeError("a process that draws scenes ended early; its own message stands above")
    return data


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time draws `folder`; a process that dies lets go."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        own = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # never what a link points to
        with os.fdopen(os.open(folder.with_name(folder.name + ".lock"), own, 0o666), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as e:
        raise DataError(f"{folder.parent}: the scenes cannot be kept there: {e.strerror}. Set TWINVIEW_CACHE to another folder.") from None


def _draw(step: int, end: int, height: int, width: int, first: int) -> None:
    for seed in range(first, end, step):
        image, labels = drawing.draw_scene(seed, (height, width))
        pictures = [_encoded(Image.fromarray(image), "JPEG", quality=QUALITY), _encoded(Image.fromarray(labels), "PNG")]
        sys.stdout.buffer.write(LENGTHS.pack(*map(len, pictures)) + b"".join(pictures))
        sys.stdout.buffer.flush()


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


if __name__ == "__main__":
    _draw(*map(int, sys.argv[1:]))
