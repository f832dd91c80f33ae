"""Samples of many shards by number.  Shards are uncompressed tars in WebDataset's layout, read by offset, or folders of images.

Those that lie elsewhere are read out of a cache on this machine.
"""
from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinview.data.dataset.base import ByNumber
from twinview.data.dataset.order import EpochSampler
from twinview.data.dataset.orders import shuffled
from twinview.data.remote.anywhere import Shard, descriptor
from twinview.data.remote.shard import remote_of
from twinview.data.store import index
from twinview.data.store.catalog import Catalog, digest_index
from twinview.data.store.image_folder import Folder
from twinview.data.store.regular import check_size
from twinview.data.store.sample import Sample
from twinview.data.store.twins import twins
from twinview.errors import DataError

ONCE = "Keys name samples: pack anew, or list each shard once."
MOST_CLASSES = 1 << 20  # numbers beyond are ids, which no layer has an output for
OPEN_FILES = 64  # shards held open by a process
OPEN_CACHED = 1  # where a limited cache holds some of them: it evicts none that is open


class Shards(ByNumber):
    """All samples of a list of shards, in the order of the list.  Safe to fork (reads by `pread` share no position) and to pickle."""

    def __init__(self, paths: Sequence[Shard], indexes: Sequence[index.Index | Folder]) -> None:
        """Raises DataError where two samples have one key; of a catalog that was found out when it was built."""
        self.paths, self.indexes = tuple(paths), indexes if isinstance(indexes, Catalog) else tuple(indexes)
        counts = indexes.samples if isinstance(indexes, Catalog) else [*map(len, indexes)]
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])  # [shards + 1]
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, the longest unused first
        self._most = OPEN_CACHED if any(shard.cache.limit for shard in remote_of(paths)) else OPEN_FILES
        if not isinstance(indexes, Catalog):
            refuse_twins([self], ONCE)

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
        """`rng.key_hash` of the key of sample `i`."""
        shard, local = self.place(i)
        return int(self.indexes[shard].hashes[local])

    def path(self, i: int) -> Shard:
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

    def replacements(self, i: int) -> range:
        """All samples."""
        return range(len(self))

    def order(self, seed: int, window: int, number: int = 0) -> EpochSampler:
        """Every sample once an epoch."""
        return shuffled(self.starts, seed, window, number)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Nothing besides."""
        return {}

    @property
    def hashes(self) -> list[NDArray[np.int64]]:
        """Of the keys of all samples, in one array or several."""
        return [self.indexes.hashes] if isinstance(self.indexes, Catalog) else [found.hashes for found in self.indexes]

    @property
    def fields(self) -> set[str]:
        """Every field that some sample has."""
        if isinstance(self.indexes, Catalog):
            return self.indexes.fields
        return {field for found in self.indexes for field in found.fields}

    @property
    def classes(self) -> int:
        """1 + the largest class number (field `cls`); 0 where not every sample has one, or they are ids far apart and number no classes."""
        found = self.classes_of_shards
        most = max(found, default=0) if all(found) else 0
        return most if most <= MOST_CLASSES else 0

    @property
    def classes_of_shards(self) -> list[int]:
        """1 + the largest class number of each shard; 0 of one where not every sample has one."""
        return self.indexes.classes.tolist() if isinstance(self.indexes, Catalog) else [found.classes for found in self.indexes]

    @cached_property
    def checksum(self) -> str:
        """A hash of all keys, fields, offsets and sizes, in order: the same set of shards, wherever it lies."""
        if isinstance(self.indexes, Catalog):
            return self.indexes.checksum
        digest = hashlib.blake2b(digest_size=16)
        for found in self.indexes:
            digest_index(digest, found)
        return digest.hexdigest()

    @cached_property
    def version(self) -> str:
        """The checksum, and sizes and times of the files, or the names that remote shards have in the cache, which tell their version."""
        digest = hashlib.blake2b(self.checksum.encode(), digest_size=16)
        if isinstance(self.indexes, Catalog):
            digest.update(self.indexes.stamps.tobytes())
        else:
            for found in self.indexes:
                digest.update(found.times.tobytes() if isinstance(found, Folder) else repr(tuple(found.stamp)).encode())
        for shard in remote_of(self.paths):
            digest.update(shard.name.encode())
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
            self._files[shard] = descriptor(self.paths[shard])
        self._files.move_to_end(shard)
        check_size(size)
        data = os.pread(self._files[shard], size, offset)
        now = os.fstat(self._files[shard])
        if (now.st_size, now.st_mtime_ns) != stamp:
            was = f"{now.st_size} bytes, and {stamp.size} when it was indexed"
            raise DataError(f"{self.paths[shard]}: has changed since it was opened ({was}). Leave shards alone while they are read, and start again.")
        return data


def twin_samples(hashes: Sequence[NDArray[np.int64]], key: Callable[[int, int], str]) -> Iterator[tuple[str, int, int]]:
    """Keys that stand twice, and the numbers of the two shards: the first that has it, and another.

    `hashes`: of the keys of each shard; `key(shard, i)`: of its sample `i`, asked only where hashes are the same.
    """
    starts = np.concatenate([[0], np.cumsum([*map(len, hashes)], dtype=np.int64)])
    for pair in twins(hashes):
        shards = [int(np.searchsorted(starts, place, side="right")) - 1 for place in pair]
        keys = [key(shard, place - int(starts[shard])) for shard, place in zip(shards, pair)]
        if keys[0] == keys[1]:
            yield keys[0], shards[0], shards[1]


def refuse_twins(sources: Sequence[Shards], instead: str) -> None:
    """Raises DataError where two samples have one key; `instead` says what to do."""
    hashes = [array for shards in sources for array in shards.hashes]
    starts = np.cumsum([0, *map(len, sources)])
    for pair in twins(hashes):
        found = []
        for number in pair:
            source = int(np.searchsorted(starts, number, side="right")) - 1
            found.append((sources[source], int(number - starts[source])))
        keys, paths = [shards.key(i) for shards, i in found], [shards.path(i) for shards, i in found]
        if keys[0] == keys[1]:
            raise DataError(f"{paths[0]} and {paths[1]}: both have a sample {keys[0]!r}. {instead}")
