"""The samples that a recipe's [data] names: several sources as one set, subsets of them, and what is held out for evaluations.

Which samples are chosen is told by hashes of their keys alone, without the source's name: a subset of a hundredth lies within that of a tenth, and
shards that are added later move no sample into a share or out of it.
"""
from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.data.dataset.base import ByNumber
from twinview.data.dataset.order import EpochSampler
from twinview.data.dataset.orders import mixed, shuffled
from twinview.data.dataset.shards import Shards
from twinview.data.remote.anywhere import Shard
from twinview.data.rng import key_hash
from twinview.data.store.sample import Sample
from twinview.errors import DataError

PIECE = 1 << 20  # rows that a checksum takes at once


@attrs.frozen(kw_only=True, eq=False)
class Subset:
    """Some samples of a source, in its order."""

    name: str
    shards: Shards
    rows: NDArray[np.int64] | range  # [n] which; a range: all
    weight: float | None = None

    @property
    def label(self) -> str:
        """As messages name it."""
        return self.name or str(self.shards.paths[0])

    @property
    def starts(self) -> NDArray[np.int64]:
        """[shards + 1]: where those of each shard begin."""
        return self.shards.starts if isinstance(self.rows, range) else np.searchsorted(self.rows, self.shards.starts)

    def rows_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of its samples `numbers`."""
        return numbers if isinstance(self.rows, range) else self.rows[numbers]

    @property
    def pieces(self) -> Iterator[bytes]:
        """What a checksum of its rows is of."""
        for at in range(0, len(self.rows), PIECE):
            piece = self.rows[at : at + PIECE]
            yield (np.arange(piece.start, piece.stop) if isinstance(piece, range) else piece).tobytes()

    def key(self, i: int) -> str:
        """The key of its sample `i`, behind the source's name."""
        key = self.shards.key(int(self.rows[i]))
        return f"{self.name}/{key}" if self.name else key

    def key_hash(self, i: int) -> int:
        """`key_hash` of that key."""
        return key_hash(self.key(i)) if self.name else self.shards.key_hash(int(self.rows[i]))


class Mixture(ByNumber):
    """Parts of sources as one set of samples, in the order of the sources."""

    def __init__(self, parts: Sequence[Subset], held_out: Mixture | None = None) -> None:
        """`held_out`: what evaluations read and no epoch does."""
        self.parts, self.held_out = tuple(parts), held_out
        self.starts: NDArray[np.int64] = np.cumsum([0, *(len(part.rows) for part in parts)], dtype=np.int64)  # [parts + 1]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _place(self, i: int) -> tuple[Subset, int]:
        part = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.parts[part], i - int(self.starts[part])

    def _row(self, i: int) -> tuple[Shards, int]:
        part, local = self._place(i)
        return part.shards, int(part.rows[local])

    def key(self, i: int) -> str:
        """The key of sample `i`: the source's name, where it has one, before its own."""
        part, local = self._place(i)
        return part.key(local)

    def key_hash(self, i: int) -> int:
        """`key_hash` of the key of sample `i`."""
        part, local = self._place(i)
        return part.key_hash(local)

    def path(self, i: int) -> Shard:
        """The file that holds sample `i`."""
        shards, row = self._row(i)
        return shards.path(row)

    def names(self, i: int) -> list[str]:
        """The fields of sample `i`."""
        shards, row = self._row(i)
        return shards.names(row)

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        """Sample `i`, all fields or those named.  Raises what its shards raise."""
        shards, row = self._row(i)
        return shards.read(row, only)._replace(key=self.key(i))

    def shards_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of `paths` holds each of these samples."""
        found, before = np.empty(len(numbers), np.int64), 0
        sources = np.searchsorted(self.starts, numbers, side="right") - 1
        for source, part in enumerate(self.parts):
            of = sources == source
            found[of] = before + part.shards.shards_of(part.rows_of(numbers[of] - self.starts[source]))
            before += len(part.shards.paths)
        return found

    def replacements(self, i: int) -> range:
        """The samples of its source."""
        part = int(np.searchsorted(self.starts, i, side="right"))
        return range(int(self.starts[part - 1]), int(self.starts[part]))

    def order(self, seed: int, window: int, number: int = 0) -> EpochSampler:
        """With weights each source's share; without, the one shuffle of all that their shards in one list would have.  Raises DataError."""
        weights = tuple(part.weight for part in self.parts if part.weight is not None)
        for part, weight in zip(self.parts, weights):
            if 2 * sum(weights) > weight * len(self):  # an epoch is more than half of all samples, where it is less than all
                raise DataError(f"[[data.source]] {part.label}: its weight {weight} is less than two samples of an epoch of {len(self)}. Write more.")
        if weights:
            return mixed([part.starts for part in self.parts], weights, seed, window, number)
        starts = [part.starts[:-1] + start for part, start in zip(self.parts, self.starts)]
        return shuffled(np.concatenate([*starts, self.starts[-1:]]), seed, window, number)

    @property
    def paths(self) -> tuple[Shard, ...]:
        """The shards and folders of all sources."""
        return tuple(path for part in self.parts for path in part.shards.paths)

    @property
    def classes(self) -> int:
        """1 + the largest class number of all sources, those held out or left out too; 0 where not every sample has one."""
        found = [part.shards.classes for part in self.parts]
        return max(found) if all(found) else 0

    @cached_property
    def checksum(self) -> str:
        """A hash of every source's name, weight, shards and chosen samples."""
        return self._hash([part.shards.checksum for part in self.parts])

    @cached_property
    def version(self) -> str:
        """Of the versions of the sources' shards."""
        return self._hash([part.shards.version for part in self.parts])

    def _hash(self, of_shards: Sequence[str]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for part, shards in zip(self.parts, of_shards):
            digest.update(f"{part.name}\0{part.weight}\0{shards}\0{len(part.rows)}\0".encode())
            for piece in part.pieces:
                digest.update(piece)
        return digest.hexdigest()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Each source: its samples, how many of them train, its share of an epoch; and how many samples are held out."""
        whole = sum(part.weight or len(part.rows) for part in self.parts)
        sources = [
            {"name": part.label, "samples": len(part.shards), "used": len(part.rows), "share": (part.weight or len(part.rows)) / whole}
            for part in self.parts
        ]
        return {"sources": sources, "held_out": len(self.held_out or ())}
