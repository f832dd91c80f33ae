"""Read all of some shards and name what is wrong: the tar, what the manifest says of it, its keys, every image, label map and class."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.data.dataset.open import shard_paths
from twinview.data.dataset.read import BadSample, bad_sample, read_class, read_map, read_values
from twinview.data.dataset.shards import Shards, twin_samples
from twinview.data.formats.fields import map_field
from twinview.data.remote.anywhere import Shard, local_copy
from twinview.data.store import image_folder, index, manifest
from twinview.data.store.manifest import ShardEntry
from twinview.data.threads import in_order
from twinview.data.writing.parts import Part, missing
from twinview.errors import DataError
from twinview.files import write_text
from twinview.progress import progress

T = TypeVar("T")
CHECKED = ".checked.json"  # behind the name of a part


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


@attrs.frozen(kw_only=True)
class CheckedShard:
    """What was read of one shard.  Keys that other shards have too are found when all are read."""

    before: tuple[str, ...]  # faults of the file, its tar and its keys
    after: tuple[str, ...] = ()  # of its samples
    images: int = 0
    labels: int = 0


class _Read(NamedTuple):
    """All that was read, in order."""

    faults: list[str]  # of the listing
    paths: Sequence[Shard]
    shards: list[CheckedShard]


def check_shards(spec: Sequence[str], *, workers: int = 1) -> Checked:
    """Check the shards that `spec` names (as `shards` of a recipe does), every byte of them.

    Of a shard whose tar is damaged the first damage is named, and nothing behind it is read.  Raises DataError where `spec` names no shard at all.
    """
    _check_workers(workers)
    paths, faults = _listed(spec)
    hashes = list[NDArray[np.int64]]()
    return _checked(_Read(faults, paths, _read(paths, workers, hashes)), hashes)


def check_part(spec: Sequence[str], out: Path, part: Part, *, workers: int = 1) -> Checked:
    """Check a part of the shards, and leave in the folder OUT what `join_checks` wants of it."""
    _check_workers(workers)
    paths, faults = _listed(spec)
    read = _Read(faults, part.of(paths), _read(part.of(paths), workers, []))
    said = {"part": str(part), "spec": list(spec), "total": len(paths), "shards": [attrs.asdict(one) for one in read.shards]}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / f"{part.name}{CHECKED}", json.dumps(said))
    except OSError as e:
        raise DataError(f"{out}: cannot be written: {e.strerror}.") from None
    return _checked(read._replace(faults=[]), [])


def join_checks(folder: Path) -> Checked:
    """What checking all shards at once would say, of the parts in a folder; keys are compared now.  Raises DataError where parts are missing."""
    found = [_checked_part(path) for path in sorted(folder.glob(f"*{CHECKED}"))]
    if not found:
        raise DataError(f"{folder}: holds no part of a check. Write them there: `twinview shards check SHARDS --part 1/N --out {folder}`.")
    parts = [Part.read(one["part"]) for one in found]
    if len({(part.parts, *one["spec"], one["total"]) for part, one in zip(parts, found)}) > 1:
        raise DataError(f"{folder}: holds parts of several checks. Remove those that do not belong together.")
    if lacking := missing(parts):
        raise DataError(f"{folder}: the parts {lacking} are not checked yet. Join when all are there.")
    paths, faults = _listed(found[0]["spec"])
    shards = [CheckedShard(**{**one, "before": tuple(one["before"]), "after": tuple(one["after"])}) for said in found for one in said["shards"]]
    if len(paths) != len(shards):
        raise DataError(f"{folder}: {len(shards)} shards were checked, and there are {len(paths)} now. Check them anew.")
    return _checked(_Read(faults, paths, shards), [_hashes(path) for path in paths])


def _checked_part(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(said, dict) and {"part", "spec", "total", "shards"} <= said.keys():
            return said
    except (OSError, ValueError):
        pass
    raise DataError(f"{path}: is no checked part, or a damaged one. Remove it, and check that part anew.")


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise DataError(f"workers: wants a number above 0, not {workers}.")


def _read(paths: Sequence[Shard], workers: int, hashes: list[NDArray[np.int64]]) -> list[CheckedShard]:
    """Read shards whole; `hashes` comes to hold those of their keys."""
    manifests = {path.parent: manifest.beside(path.parent).shards for path in paths if isinstance(path, Path)}
    read = list[CheckedShard]()
    for path in progress(paths, len(paths), "check", "shards"):
        before = list(_against(manifests[path.parent].get(path.name), path)) if isinstance(path, Path) else []
        try:
            found = _scan(path)
        except DataError as e:
            read.append(CheckedShard(before=(*before, str(e))))
            hashes.append(np.empty(0, np.int64))
            continue
        shards = Shards([path], [found])
        samples = list(in_order(partial(_sample, shards), range(len(shards)), workers))
        shards.close()
        read.append(CheckedShard(
            before=(*before, *_outside(shards)), after=tuple(fault for one in samples for fault in one.faults),
            images=sum(one.image for one in samples), labels=sum(one.label for one in samples),
        ))
        hashes.append(found.hashes.copy())
    return read


def _checked(read: _Read, hashes: Sequence[NDArray[np.int64]]) -> Checked:
    """All faults in the order of the shards, each key that stands twice where it stands the second time."""
    twice: dict[int, list[str]] = {}
    for key, first, other in twin_samples(hashes, lambda shard, i: _scan(read.paths[shard]).key(i)):
        twice.setdefault(other, []).append(f"{read.paths[other]}, sample {key!r}: stands already in {read.paths[first]}")
    faults = [*read.faults]
    for number, one in enumerate(read.shards):
        faults += [*one.before, *twice.get(number, ()), *one.after]
    images, labels = (sum(getattr(one, what) for one in read.shards) for what in ("images", "labels"))
    return Checked(shards=len(read.paths), images=images, labels=labels, faults=tuple(faults))


def _hashes(path: Shard) -> NDArray[np.int64]:
    """Of the keys of a shard that was checked; none of a shard whose tar is damaged, which says so already."""
    try:
        return _scan(path).hashes.copy()
    except DataError:
        return np.empty(0, np.int64)


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


def _outside(shards: Shards) -> Iterator[str]:
    """Keys that would lead out of a folder if they were taken for paths."""
    for i in range(len(shards)):
        key = shards.key(i)
        if key.startswith("/") or ".." in key.split("/"):
            yield f"{shards.path(i)}, sample {key!r}: the key names a place outside of the shard"


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
