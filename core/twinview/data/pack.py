"""Write shards: a folder of images becomes tars in WebDataset's layout, with their indexes and a manifest.

The bytes of images and label maps stay as they are, and the same input gives the same tars, byte for byte.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import attrs
from webdataset.writer import TarWriter

from twinview.data import decode, index
from twinview.data.progress import progress
from twinview.data.shards import Sample
from twinview.errors import DataError
from twinview.values import Size

SHARD_SIZE = 1000  # samples
FEWEST = 8  # shards that a folder of images is packed into, small as it may be
MAX_BYTES = 1 << 30  # of a shard's files
SUFFIXES = tuple("." + field for field in decode.IMAGE_FIELDS)


@attrs.frozen(kw_only=True)
class Summary:
    """What was written."""

    out: Path
    shards: int
    images: int
    labels: int  # label maps
    bytes: int  # of all shards
    seconds: float
    passed_over: int = 0  # files that are no images by their suffix

    @property
    def images_per_second(self) -> float:
        """How fast it went."""
        return self.images / max(self.seconds, 1e-9)

    def text(self) -> str:
        """One line for a person."""
        maps = f" with {self.labels} label maps" if self.labels else ""
        speed = f"{self.seconds:.1f} s, {self.images_per_second:.0f} images/s"
        others = f"; {self.passed_over} other files passed over" if self.passed_over else ""
        return f"{self.out}: {self.images} images{maps} in {self.shards} shard{'s' * (self.shards != 1)}, {self.bytes / 1e6:.1f} MB ({speed}){others}"


def pack_images(
    images: Path, out: Path, labels: Path | None = None, *, shard_size: int = SHARD_SIZE, max_bytes: int = MAX_BYTES, name: str | None = None
) -> Summary:
    """Pack every image under `images`, sorted by path, into OUT/NAME-000000.tar, ...; NAME is OUT's own unless given.

    A sample's key is the image's path without its suffix; what is neither letter, digit, `/`, `-` nor `_` becomes `_`.  `labels` holds a
    PNG of class numbers of the same size under the same path for each.  A shard has at most `shard_size` samples and
    `max_bytes`, fewer where the set would fill less than eight.  OUT appears when all is written.  Raises DataError, also for a file whose
    header is that of no image or, under `labels`, of no label map; pixels are not decoded, so a picture that was cut short is packed as it is.
    """
    if shard_size < 1:
        raise DataError(f"shard_size: wants a number above 0, not {shard_size}.")
    pictures, passed_over = _pictures(images, labels)
    paths = _keys(images, pictures)
    maps = _maps(images, labels, pictures) if labels else {}
    shard_size = min(shard_size, -(-len(paths) // FEWEST))
    samples = (_sample(key, path, maps.get(path)) for key, path in paths.items())
    written = write_shards(samples, out, total=len(paths), shard_size=shard_size, max_bytes=max_bytes, name=name, what="pack")
    return attrs.evolve(written, passed_over=passed_over)


def write_shards(
    samples: Iterable[Sample], out: Path, *, total: int, shard_size: int, max_bytes: int = MAX_BYTES, name: str | None = None,
    what: str, about: Mapping[str, Any] | None = None,
) -> Summary:
    """Write samples to OUT/NAME-000000.tar, ..., each with its index, and OUT/manifest.json; OUT appears when all is written.

    `what` and `total` are for the progress bar, `about` goes to the manifest.  Raises DataError where OUT is there and not empty, or cannot
    be written.
    """
    started = time.monotonic()
    name = re.sub(r"[^\w-]", "_", name or out.resolve().name)
    shards: list[dict[str, Any]] = []
    with _appearing(out) as folder:
        numbered = _numbered(progress(samples, total, what, "images"), shard_size, max_bytes)
        for number, group in groupby(numbered, key=lambda pair: pair[0]):
            shards.append(_write(folder / f"{name}-{number:06}.tar", (sample for _, sample in group)))
        totals = {count: sum(shard[count] for shard in shards) for count in ("images", "labels", "bytes")}
        manifest = {"format": 1, **totals, **(about or {}), "shards": shards}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return Summary(out=out, shards=len(shards), **totals, seconds=time.monotonic() - started)


def _numbered(samples: Iterable[Sample], shard_size: int, max_bytes: int) -> Iterator[tuple[int, Sample]]:
    """Each sample with the number of the shard that it goes to."""
    number = count = weight = 0
    for sample in samples:
        size = sum(map(len, sample.fields.values()))
        if count == shard_size or (count and weight + size > max_bytes):
            number, count, weight = number + 1, 0, 0
        count, weight = count + 1, weight + size
        yield number, sample


def _write(path: Path, samples: Iterable[Sample]) -> dict[str, Any]:
    with path.open("wb") as file:
        with TarWriter(file, encoder=False, mtime=0, user="", group="", mode=0o644) as tar:
            for sample in samples:
                tar.write({"__key__": sample.key, **sample.fields})
        file.flush()
        os.fsync(file.fileno())
    found = index.build(path)
    labels = sum(found.fields[kind] == decode.MAP_FIELD for kind in found.kinds)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "images": len(found), "labels": labels, "bytes": found.stamp.size, "sha256": digest}


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that becomes `out` at the end, or goes."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there already. Name a new folder, or remove this one.")
    folder = out.absolute().parent / f".{out.name}.{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
    except OSError as e:
        raise DataError(f"{out}: cannot be made: {e.strerror}.") from None
    try:
        yield folder
        folder.rename(out)
    except OSError as e:
        raise DataError(f"{out}: cannot be written: {e.strerror}.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already where all went well


# ---- which images
def _pictures(images: Path, labels: Path | None) -> tuple[list[Path], int]:
    """The images under a folder, sorted, and how many other files it has.  Links are followed; `labels`, should it lie inside, is left out."""
    if not images.is_dir():
        raise DataError(f"{images}: there is no such folder of images.")
    found, others = [], 0
    for root, folders, files in os.walk(images, followlinks=True):
        folders[:] = [f for f in folders if labels is None or (Path(root) / f).resolve() != labels.resolve()]
        wanted = [Path(root) / f for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".")]
        found += wanted
        others += len(files) - len(wanted)
    if not found:
        raise DataError(f"{images}: holds no images ({', '.join(SUFFIXES)}).")
    return sorted(found), others


def _keys(images: Path, pictures: Iterable[Path]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in pictures:
        key = re.sub(r"[^\w/-]", "_", path.relative_to(images).with_suffix("").as_posix())
        if key in paths:
            raise DataError(f"{path}: its key {key!r} is that of {paths[key]} too. Rename one of the two.")
        paths[key] = path
    return paths


def _maps(images: Path, labels: Path, pictures: list[Path]) -> dict[Path, Path]:
    maps = {path: labels / path.relative_to(images).with_suffix(".png") for path in pictures}
    missing = [path for path, label in maps.items() if not label.is_file()]
    if missing:
        few = f"{len(missing)} of {len(maps)} have none"
        raise DataError(f"{missing[0]}: has no label map {maps[missing[0]]} ({few}). Add it, or pack without labels.")
    return maps


def _sample(key: str, path: Path, label: Path | None) -> Sample:
    data, size = _checked(path, decode.image_size)
    field = path.suffix[1:].lower().replace("jpeg", "jpg")
    if label is None:
        return Sample(key, {field: data})
    drawn, other = _checked(label, decode.map_size)
    if other != size:
        raise DataError(f"{label}: is {other} pixels (height, width), its image {size}. A label map has its image's size.")
    return Sample(key, {field: data, decode.MAP_FIELD: drawn})


def _checked(path: Path, measure: Callable[[bytes], Size]) -> tuple[bytes, Size]:
    """The bytes of a picture, with its height and width."""
    try:
        data = path.read_bytes()
        return data, measure(data)
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror}.") from None
    except ValueError as e:
        raise DataError(f"{path}: {e}. Remove it, or put it right.") from None
