"""What images are read from by number: shards, folders of images, or what a recipe's [data] makes of several."""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from twinview.data.dataset.order import EpochSampler
    from twinview.data.remote.shard import RemoteShard
    from twinview.data.store.sample import Sample


class Samples(Protocol):
    """Samples 0 to n - 1.  Safe to fork, and to pickle."""

    @property
    def paths(self) -> Sequence[Path | RemoteShard]:
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

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """The key of sample `i`."""
        ...

    def key_hash(self, i: int) -> int:
        """`draws.key_hash` of the key of sample `i`."""
        ...

    def path(self, i: int) -> Path | RemoteShard:
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

    def order(self, seed: int, window: int) -> EpochSampler:
        """The order of every epoch."""
        ...
