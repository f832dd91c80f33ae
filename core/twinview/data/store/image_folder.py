"""A folder of images as it lies: its files by number, in the order and under the keys that packing it would give them.

The index is kept in the cache folder and holds as long as no folder below has changed: what was added, removed or renamed is noticed at the next
start.  A file that was written anew in its place is noticed when it is read.
"""
from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.data.rng import key_hash
from twinview.data.store.index import save
from twinview.data.store.listing import Listing, image_field, key_of, listing
from twinview.data.store.regular import check_size, check_stored, open_regular
from twinview.data.store.twins import twins
from twinview.errors import DataError
from twinview.paths import cache
from twinview.progress import progress

FORMAT = 2
ARRAYS = ("hashes", "names", "name_starts", "kinds", "sizes", "times")
SETTLED = 2.0  # seconds: a folder that changed less than this before it was read may change again within one tick of its clock


@attrs.frozen(kw_only=True, eq=False)
class Folder:
    """The n images of a folder, as arrays that forked workers share."""

    root: Path
    fields: tuple[str, ...]  # names that `kinds` counts
    hashes: NDArray[np.int64]  # [n] of the keys
    names: NDArray[np.uint8]  # paths below the root, one behind the other
    name_starts: NDArray[np.int64]  # [n + 1] into `names`
    kinds: NDArray[np.int32]  # [n] field
    sizes: NDArray[np.int64]  # [n] bytes
    times: NDArray[np.int64]  # [n] of the last change, ns; -1 of what is no readable file, such as a broken link

    others: Mapping[str, int] = attrs.field(factory=dict)  # what was passed over, by kind

    classes = 0  # no image has a class

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def content(self) -> Iterator[NDArray[Any]]:
        """What a checksum is of: names and sizes."""
        yield from (self.names, self.name_starts, self.kinds, self.sizes)

    def _name(self, i: int) -> str:
        return os.fsdecode(self.names[self.name_starts[i] : self.name_starts[i + 1]].tobytes())

    def key(self, i: int) -> str:
        """The key of image `i`."""
        return key_of(self._name(i))

    def path(self, i: int) -> Path:
        """The file of image `i`."""
        return self.root / self._name(i)

    def files(self, i: int) -> Iterator[tuple[str, int, int]]:
        """(field, 0, size) of the one file of image `i`."""
        yield self.fields[self.kinds[i]], 0, int(self.sizes[i])

    def read(self, i: int) -> bytes:
        """The file of image `i`.  Raises ValueError where it cannot be read, DataError where it is another than the index knows."""
        if self.times[i] < 0:
            raise ValueError("was no readable file when its folder was indexed")
        try:
            with os.fdopen(open_regular(self.path(i)), "rb", buffering=0) as file:
                check_size(os.fstat(file.fileno()).st_size)
                data = file.readall()
                now = os.fstat(file.fileno())
        except OSError as e:
            raise ValueError(f"cannot be read: {e.strerror}") from None
        if (now.st_size, now.st_mtime_ns) != (self.sizes[i], self.times[i]):
            was = f"{now.st_size} bytes, and {self.sizes[i]} then"
            again = f"`twinview shards index images:{self.root}`"
            raise DataError(f"{self.path(i)}: has changed since its folder was indexed ({was}). {again} indexes it anew.")
        return data


def read(root: Path) -> Folder | None:
    """A folder's index as it was kept; None where there is none, or a folder has changed since."""
    try:
        check_stored(_kept(root))
        with np.load(_kept(root)) as file:
            meta = json.loads(file["meta"].tobytes())
            if meta["format"] != FORMAT or any(_times(root / name) != times for name, *times in meta["folders"]):
                return None
            return Folder(root=root, fields=tuple(meta["fields"]), others=dict(meta["others"]), **{name: file[name] for name in ARRAYS})
    except Exception:  # whatever is wrong with it, it can be built anew
        return None


def build(root: Path) -> Folder:
    """Index a folder, and keep the index if the folder has been left alone for two seconds.  Raises DataError."""
    began = time.time_ns()
    found = listing(root)
    folder = _index(root, found)
    if all(max(times) < began - SETTLED * 1e9 for _, *times in found.folders):
        meta = {"format": FORMAT, "fields": folder.fields, "others": dict(folder.others), "folders": found.folders}
        with suppress(OSError):  # where it cannot be kept it is used all the same
            save(_kept(root), meta, {name: getattr(folder, name) for name in ARRAYS})
    return folder


def scan(root: Path) -> Folder:
    """Index a folder.  Raises DataError: a folder that cannot be read, no images, two of one key."""
    return _index(root, listing(root))


def _index(root: Path, found: Listing) -> Folder:
    names = found.images
    kinds = {field: kind for kind, field in enumerate(sorted({image_field(name) for name in names}))}
    stats = np.array([_stamp(root / name) for name in progress(names, len(names), "index", "images")], np.int64)
    encoded = [os.fsencode(name) for name in names]
    folder = Folder(
        root=root,
        others=found.others,
        fields=tuple(kinds),
        hashes=np.fromiter((key_hash(key_of(name)) for name in names), np.int64, len(names)),
        names=np.frombuffer(b"".join(encoded), np.uint8),
        name_starts=np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        kinds=np.fromiter((kinds[image_field(name)] for name in names), np.int32, len(names)),
        sizes=stats[:, 0].copy(),
        times=stats[:, 1].copy(),
    )
    for one, other in twins([folder.hashes]):
        if folder.key(one) == folder.key(other):
            raise DataError(f"{folder.path(other)}: its key {folder.key(one)!r} is that of {folder.path(one)} too. Rename one of the two.")
    return folder


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; (0, -1) of what is none."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, -1
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (0, -1)


def _times(folder: Path) -> list[int]:
    found = os.stat(folder)
    return [found.st_mtime_ns, found.st_ctime_ns]


def _kept(root: Path) -> Path:
    """Where the index of a folder lies."""
    place = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16).hexdigest()
    return cache() / "folders" / f"{place}.npz"
