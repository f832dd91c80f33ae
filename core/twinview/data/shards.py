"""Samples of many shards by number.  Shards are uncompressed tars in WebDataset's layout, read by offset, or folders of images.

Those that lie elsewhere are read out of a cache on this machine.
"""
from __future__ import annotations

import difflib
import glob
import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twinview.data import folder as images
from twinview.data import index
from twinview.data.draws import twins
from twinview.data.embedded import scenes
from twinview.data.folder import Folder
from twinview.data.order import Order, Shuffled
from twinview.data.progress import progress
from twinview.data.remote import Access, Remote, in_threads, is_remote, remote_shards
from twinview.data.sources.files import folder as image_folder
from twinview.errors import DataError

OPEN_FILES = 64  # shards held open by a process
OPEN_CACHED = 1  # where a limited cache holds some of them: it evicts none that is open


class Sample(NamedTuple):
    """A sample as it lies in a shard."""

    key: str
    fields: dict[str, bytes]


class Shards:
    """All samples of a list of shards, in the order of the list.  Safe to fork (reads by `pread` share no position) and to pickle."""

    def __init__(self, paths: Sequence[Path | Remote], indexes: Sequence[index.Index | Folder]) -> None:
        """Raises DataError where two samples have one key."""
        self.paths, self.indexes = tuple(paths), tuple(indexes)
        self.starts: NDArray[np.int64] = np.cumsum([0, *map(len, indexes)], dtype=np.int64)  # [shards + 1]
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, the longest unused first
        self._most = OPEN_CACHED if any(isinstance(path, Remote) and path.cache.limit for path in paths) else OPEN_FILES
        refuse_twins([self], "Keys name samples: pack anew, or list each shard once.")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, i: int) -> tuple[int, int]:
        """(shard, sample within it) of sample `i`."""
        shard = int(np.searchsorted(self.starts, i, side="right")) - 1
        return shard, i - int(self.starts[shard])

    def key(self, i: int) -> str:
        """The key of sample `i`."""
        shard, local = self.place(i)
        return self.indexes[shard].key(local)

    def key_hash(self, i: int) -> int:
        """`draws.key_hash` of the key of sample `i`."""
        shard, local = self.place(i)
        return int(self.indexes[shard].hashes[local])

    def path(self, i: int) -> Path | Remote:
        """The shard that holds sample `i`, or its own file in a folder of images."""
        shard, local = self.place(i)
        found = self.indexes[shard]
        return found.path(local) if isinstance(found, Folder) else self.paths[shard]

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        """Sample `i`, all fields or those named.

        Raises DataError where the shard, or the image's own file, has changed since it was opened; ValueError where that file is gone.
        """
        shard, local = self.place(i)
        found = self.indexes[shard]
        wanted = [file for file in found.files(local) if only is None or file[0] in only]
        if isinstance(found, Folder):
            return Sample(found.key(local), {field: found.read(local) for field, _, _ in wanted})
        return Sample(found.key(local), {field: self._pread(shard, offset, size, found.stamp) for field, offset, size in wanted})

    def names(self, i: int) -> list[str]:
        """The fields of sample `i`."""
        shard, local = self.place(i)
        return [field for field, _, _ in self.indexes[shard].files(local)]

    def shards_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of `paths` holds each of these samples."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def mates(self, i: int) -> range:
        """All samples."""
        return range(len(self))

    def order(self, seed: int, window: int) -> Order:
        """Every sample once an epoch."""
        return Shuffled(starts=self.starts, seed=seed, window=window)

    @property
    def about(self) -> Mapping[str, Any]:
        """Nothing besides."""
        return {}

    @property
    def fields(self) -> set[str]:
        """Every field that some sample has."""
        return {field for found in self.indexes for field in found.fields}

    @property
    def classes(self) -> int:
        """1 + the largest class number (field `cls`); 0 where not every sample has one."""
        found = [i.classes for i in self.indexes]
        return max(found, default=0) if all(found) else 0

    @cached_property
    def checksum(self) -> str:
        """A hash of all keys, fields, offsets and sizes, in order: the same set of shards, wherever it lies."""
        digest = hashlib.blake2b(digest_size=16)
        for found in self.indexes:
            digest.update(json.dumps([len(found), found.fields]).encode())
            for array in found.content:
                digest.update(array.tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the shards; a later read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def _pread(self, shard: int, offset: int, size: int, stamp: index.Stamp) -> bytes:
        if shard not in self._files:
            if len(self._files) >= self._most:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = _open(self.paths[shard])
        self._files.move_to_end(shard)
        data = os.pread(self._files[shard], size, offset)
        now = os.fstat(self._files[shard])
        if (now.st_size, now.st_mtime_ns) != stamp:
            was = f"{now.st_size} bytes, and {stamp.size} when it was indexed"
            raise DataError(f"{self.paths[shard]}: has changed since it was opened ({was}). Leave shards alone while they are read, and start again.")
        return data


def _open(path: Path | Remote) -> int:
    if isinstance(path, Remote):
        return path.open()
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}.") from None


def refuse_twins(sources: Sequence[Shards], instead: str) -> None:
    """Raises DataError where two samples have one key; `instead` says what to do."""
    hashes = np.concatenate([found.hashes for shards in sources for found in shards.indexes])
    starts = np.cumsum([0, *map(len, sources)])
    for pair in twins(hashes):
        found = []
        for number in pair:
            source = int(np.searchsorted(starts, number, side="right")) - 1
            found.append((sources[source], int(number - starts[source])))
        keys, paths = [shards.key(i) for shards, i in found], [shards.path(i) for shards, i in found]
        if keys[0] == keys[1]:
            raise DataError(f"{paths[0]} and {paths[1]}: both have a sample {keys[0]!r}. {instead}")


def open_shards(spec: str | Sequence[str], access: Access | None = None, *, rebuild: bool = False) -> Shards:
    """Open shards by path: `{000..063}`, `*` and folders are expanded, in order; `images:DIR` is a folder of images.

    `scenes:train` and `scenes:val` are the embedded scenes.  URLs and `pipe:` are read by way of a cache, as `access` says.  A shard without a
    fresh index gets one, with `rebuild` every shard.  Raises DataError with the shard that is missing, damaged or out of reach.
    """
    paths = [path for one in ([spec] if isinstance(spec, str) else spec) for path in shard_paths(one, access)]
    if not paths:
        raise DataError("[data] shards: names no shard. Write the paths of some .tar files.")
    remote = [path for path in paths if isinstance(path, Remote)]
    local = [path for path in paths if isinstance(path, Path)]
    opened = dict(zip(remote, in_threads(lambda shard: shard.opened(rebuild), remote, "index")))
    indexes = {path: None if rebuild else images.read(path) if path.is_dir() else index.read(path) for path in local}
    todo = [path for path, found in indexes.items() if found is None]
    for path in progress(todo, len(todo), "index", "shards"):
        indexes[path] = images.build(path) if path.is_dir() else index.build(path)
    both = [opened[path] if isinstance(path, Remote) else (path, indexes[path]) for path in paths]
    return Shards([path for path, _ in both], [found for _, found in both if found is not None])


def shard_paths(spec: str, access: Access | None = None) -> Iterator[Path | Remote]:
    """The shards that a path with braces or `*`, a folder, a URL or `scenes:SPLIT` names; of `images:DIR` the folder.  Raises DataError."""
    if spec.startswith("scenes:"):
        yield from _folder(scenes(spec.removeprefix("scenes:")))
        return
    if spec.startswith("images:"):
        for text in expand(spec.removeprefix("images:")):
            yield image_folder(Path(os.path.expanduser(text)), "of images")
        return
    if is_remote(spec):
        yield from remote_shards(spec, list(expand(spec)), access or Access())
        return
    for text in expand(spec):
        path = Path(os.path.expanduser(text))  # Path's own raises where there is no such user
        if path.is_dir():
            yield from _folder(path)
        elif path.is_file():
            yield path
        elif found := sorted(glob.glob(str(path))):
            yield from map(Path, found)
        else:
            raise DataError(f"{path}: there is no such shard.{_nearest(path)}")


def expand(spec: str) -> Iterator[str]:
    """`a-{000..063}.tar`, `{train,extra}.tar`: every path that braces stand for, in order, zero-padded as written."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", spec)
    if found is None:
        yield spec
        return
    first, last, words = found.groups()
    if words is None and int(first) > int(last):
        raise DataError(f"{spec!r}: {first}..{last} counts down. Write {{{last}..{first}}}.")
    width = len(first) if first and (first[0] == "0" or last[0] == "0") else 0
    for word in words.split(",") if words is not None else (f"{n:0{width}}" for n in range(int(first), int(last) + 1)):
        yield from expand(spec[: found.start()] + word + spec[found.end() :])


def _folder(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.tar"))
    if not found:
        raise DataError(f"{folder}: holds no .tar. Of a folder of images write images:{folder}, or pack it: `twinview shards pack images`.")
    manifest = folder / "manifest.json"
    if manifest.is_file():
        try:
            listed = [shard["name"] for shard in json.loads(manifest.read_text())["shards"]]
        except (ValueError, KeyError, TypeError):
            return found  # not ours
        missing = [name for name in listed if not (folder / name).is_file()]
        if missing:
            listing = f"{len(missing)} of {len(listed)} shards of manifest.json are"
            raise DataError(f"{folder / missing[0]}: is missing ({listing}). Copy the folder anew.")
    return found


def _nearest(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" There is no folder {folder} either."
    names = [p.name for p in folder.iterdir() if p.suffix == ".tar" or p.is_dir()]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.0)
    return f" The nearest is {folder / near[0]}." if near else f" {folder} holds no .tar."
