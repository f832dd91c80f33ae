"""Samples that are held in memory, read by number as shards are."""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twinview.data.dataset.base import ByNumber
from twinview.data.dataset.order import EpochSampler
from twinview.data.dataset.orders import shuffled
from twinview.data.remote.anywhere import Shard
from twinview.data.rng import key_hash
from twinview.data.store.sample import Sample


class BufferedSample(NamedTuple):
    """A sample in memory, and where it came from."""

    sample: Sample
    path: Shard


class InMemorySamples(ByNumber):
    """Some samples in memory by number; what turns samples into views reads them as it reads shards."""

    classes, checksum, version = 0, "", ""

    def __init__(self, held: Mapping[int, BufferedSample], length: int) -> None:
        """`length`: beyond all numbers."""
        self.held, self.length = held, length

    def __len__(self) -> int:
        return self.length

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    @property
    def paths(self) -> Sequence[Shard]:
        """Where they came from."""
        return tuple(dict.fromkeys(held.path for held in self.held.values()))

    def key(self, i: int) -> str:
        """The key of sample `i`."""
        return self.held[i].sample.key

    def key_hash(self, i: int) -> int:
        """`rng.key_hash` of it."""
        return key_hash(self.key(i))

    def path(self, i: int) -> Shard:
        """The shard that it came from."""
        return self.held[i].path

    def names(self, i: int) -> list[str]:
        """Its fields."""
        return list(self.held[i].sample.fields)

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        """All its fields or those named."""
        key, fields = self.held[i].sample
        return Sample(key, {name: data for name, data in fields.items() if only is None or name in only})

    def replacements(self, _: int) -> list[int]:
        """All that are in memory."""
        return list(self.held)

    def shards_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of `paths` holds each of these samples."""
        return np.array([self.paths.index(self.held[int(i)].path) for i in numbers])

    def order(self, seed: int, window: int, number: int = 0) -> EpochSampler:
        """A shuffle of all."""
        return shuffled(np.array([0, self.length]), seed, 0, number)
