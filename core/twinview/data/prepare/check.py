"""Read all of some shards and name what is wrong: the tar, what the manifest says of it, its keys, every image, label map and class."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import attrs

from twinview.data.dataset.open import shard_paths
from twinview.data.dataset.read import BadSample, bad_sample, read_class, read_map, read_values
from twinview.data.dataset.shards import Shards
from twinview.data.formats.fields import map_field
from twinview.data.remote.anywhere import Shard, local_copy
from twinview.data.store import image_folder, index, manifest
from twinview.data.store.manifest import ShardEntry
from twinview.data.threads import in_order
from twinview.errors import DataError
from twinview.progress import progress

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Checked:
    """What was read, and what is wrong with it, a line each."""

    shards: int
    images: int  # that decode
    labels: int  # label maps that do
    faults: tuple[str, ...]

    def text(self) -> str:
        """What was read."""
        return f"{self.shards} shards, {self.images} images, {self.labels} label maps"


class _Sample(NamedTuple):
    image: bool
    label: bool
    faults: list[str]


def check_shards(spec: Sequence[str], *, workers: int = 1) -> Checked:
    """Check the shards that `spec` names (as `shards` of a recipe does), every byte of them.

    Of a shard whose tar is damaged the first damage is named, and nothing behind it is read.  Raises DataError where `spec` names no shard at all.
    """
    if workers < 1:
        raise DataError(f"workers: wants a number above 0, not {workers}.")
    paths, faults = _listed(spec)
    manifests = {path.parent: manifest.beside(path.parent).shards for path in paths if isinstance(path, Path)}
    first: dict[int, tuple[str, Shard]] = {}  # hash of a key -> the key, and where it stands
    images = labels = 0
    for path in progress(paths, len(paths), "check", "shards"):
        if isinstance(path, Path):
            faults += _against(manifests[path.parent].get(path.name), path)
        try:
            found = _scan(path)
        except DataError as e:
            faults.append(str(e))
            continue
        shards = Shards([path], [found])
        faults += _twins(shards, first)
        for one in in_order(partial(_sample, shards), range(len(shards)), workers):
            images, labels = images + one.image, labels + one.label
            faults += one.faults
        shards.close()
    return Checked(shards=len(paths), images=images, labels=labels, faults=tuple(faults))


def _scan(shard: Shard) -> index.Index | image_folder.Folder:
    path = local_copy(shard)  # fetched: against what its own manifest says
    return image_folder.scan(path) if path.is_dir() else index.scan(path, str(shard))


def _listed(spec: Iterable[str]) -> tuple[list[Shard], list[str]]:
    """The shards, and what a folder's manifest names that is not there, or the other way round."""
    paths, faults = list[Shard](), list[str]()
    for one in spec:
        folder = Path(one).expanduser()
        if not folder.is_dir():
            paths += shard_paths(one)
            continue
        there, named = {path.name for path in folder.glob("*.tar") if not path.name.startswith(".")}, set(manifest.beside(folder).shards)
        if not there | named:
            raise DataError(f"{folder}: holds no .tar.")
        faults += [f"{folder / name}: is missing; manifest.json names it" for name in sorted(named - there)]
        faults += [f"{folder / name}: manifest.json does not name it" for name in sorted(there - named) if named]
        paths += [folder / name for name in sorted(there)]
    return paths, faults


def _against(said: ShardEntry | None, path: Path) -> Iterator[str]:
    """What a shard has otherwise than its manifest says."""
    if said is None:
        return
    try:
        size = path.stat().st_size
        if said.bytes not in (None, size):
            yield f"{path}: has {size} bytes, and {said.bytes} in manifest.json"
        elif said.sha256:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != said.sha256:
                    yield f"{path}: has another sha256 than in manifest.json"
    except OSError as e:
        yield f"{path}: {e.strerror}"


def _twins(shards: Shards, first: dict[int, tuple[str, Shard]]) -> Iterator[str]:
    """Keys that an earlier shard has too, or that would lead out of a folder if they were taken for paths."""
    for i in range(len(shards)):
        key, path = shards.key(i), shards.path(i)
        if key.startswith("/") or ".." in key.split("/"):
            yield f"{path}, sample {key!r}: the key names a place outside of the shard"
        before, place = first.setdefault(shards.key_hash(i), (key, path))
        if place != path and before == key:
            yield f"{path}, sample {key!r}: stands already in {place}"


def _sample(shards: Shards, i: int) -> _Sample:
    names, faults = shards.names(i), list[str]()

    def tried(read: Callable[[Shards, int], T]) -> T | None:
        try:
            return read(shards, i)
        except (BadSample, DataError) as e:
            faults.append(str(e).removesuffix("."))
            return None

    image = tried(read_values)
    label = tried(read_map) if map_field(names) else None
    if "cls" in names:
        tried(read_class)
    if image is not None and label is not None and label.shape != image.shape[1:]:
        sizes = f"its label map is {tuple(label.shape)} pixels (height, width), its image {tuple(image.shape[1:])}"
        faults.append(str(bad_sample(shards, i, sizes)))
    return _Sample(image is not None, label is not None, faults)
