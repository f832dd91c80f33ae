"""What images are read from: shards, folders of images, or what a recipe's [data] makes of several, by number or forward alone."""
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from twinview.data.dataset.order import EpochSampler
    from twinview.data.remote.anywhere import Shard
    from twinview.data.store.sample import Sample


class DataSource(Protocol):
    """What a recipe's [data] names: n samples, which may or may not be read by number."""

    @property
    def paths(self) -> Sequence[Shard]:
        """The shards and folders."""
        ...

    @property
    def classes(self) -> int:
        """1 + the largest class number (field `cls`); 0 where not every sample has one."""
        ...

    @property
    def checksum(self) -> str:
        """A hash of all that decides on what is read, wherever it lies."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What a run's manifest says of them besides."""
        ...

    @property
    def held_out(self) -> Samples | None:
        """What is kept from training, for evaluations; None where nothing is."""
        ...

    def __len__(self) -> int: ...

    def numbered(self) -> Samples:
        """Its samples by number.  Raises DataError where they can only be read forward."""
        ...

    def preview(self, count: int) -> Samples:
        """Samples to show: all of them, or the first `count` where they can only be read forward."""
        ...


class Samples(DataSource, Protocol):
    """Samples 0 to n - 1, read by number.  Safe to fork, and to pickle."""

    @property
    def version(self) -> str:
        """Like `checksum`, and another one where bytes may have changed: by times of files, and versions of what lies elsewhere."""
        ...

    def key(self, i: int) -> str:
        """The key of sample `i`."""
        ...

    def key_hash(self, i: int) -> int:
        """`rng.key_hash` of the key of sample `i`."""
        ...

    def path(self, i: int) -> Shard:
        """The file that holds sample `i`."""
        ...

    def names(self, i: int) -> list[str]:
        """The fields of sample `i`."""
        ...

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        """Sample `i`, all fields or those named.  Raises DataError where it has changed since it was opened, ValueError where it is gone."""
        ...

    def shards_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of `paths` holds each of these samples."""
        ...

    def replacements(self, i: int) -> Sequence[int]:
        """Those of which one may stand in for sample `i`."""
        ...

    def order(self, seed: int, window: int, number: int = 0) -> EpochSampler:
        """The order of every epoch, in the format `number` ([data] order; 0: the newest)."""
        ...


class ForwardSamples(DataSource, Protocol):
    """Samples that are read a shard at a time, from its start to its end."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """[shards + 1]: where the ids of each shard begin."""
        ...

    def read_shard(self, shard: int) -> Iterator[Sample]:
        """The samples of a shard, in order.  Raises DataError."""
        ...


class ByNumber:
    """The part of `DataSource` that is the same wherever samples can be read by number."""

    held_out: Samples | None = None

    def numbered(self) -> Samples:
        """Itself."""
        return cast(Samples, self)

    def preview(self, count: int) -> Samples:
        """Itself."""
        return cast(Samples, self)
