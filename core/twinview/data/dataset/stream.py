"""Shards that are read from their start to their end, and kept nowhere: for sources that do not fit the disk, or cannot be read by offset.

WebDataset's own iteration is not used: it takes a broken header for the end of a tar, and loses what is behind it without a word.  Here a tar has to
end as tars do, and to hold as many samples as its manifest or index says.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.data.dataset.in_memory import BufferedSample, InMemorySamples
from twinview.data.remote.anywhere import Shard, forward
from twinview.data.remote.base import BLOCK
from twinview.data.store import index
from twinview.data.store.regular import SAMPLE_BYTES
from twinview.data.store.sample import Sample
from twinview.data.store.tar import members
from twinview.errors import DataError

UNCOUNTED = 1 << 32  # samples that a shard may have where nobody counted them: ids of the next shard begin behind them
NUMBERED = "[data] streaming: what the run trains with cannot be read by number. Name shards for the evaluation to read."


@attrs.frozen(kw_only=True, eq=False)
class Stream:
    """Shards to stream."""

    paths: tuple[Shard, ...]
    counts: tuple[int, ...] | None  # samples of each shard, where all are known
    samples: int

    classes = 0  # nobody has looked at all of them
    held_out = None

    def __len__(self) -> int:
        return self.samples

    @property
    def starts(self) -> NDArray[np.int64]:
        """[shards + 1]: ids begin here."""
        return np.cumsum([0, *(self.counts or (UNCOUNTED,) * len(self.paths))], dtype=np.int64)

    @property
    def checksum(self) -> str:
        """A hash of names and counts: contents are not known before they are read."""
        names = [Path(str(path)).name for path in self.paths]
        return hashlib.blake2b(repr((names, self.counts, self.samples)).encode(), digest_size=16).hexdigest()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """That it is a stream."""
        return {"streamed": True}

    def read_shard(self, shard: int) -> Iterator[Sample]:
        """The samples of a shard, in order.  Raises DataError: unreachable, damaged, cut off, or another number of samples."""
        count, path = 0, self.paths[shard]
        for sample in tar_samples(path):
            count += 1
            yield sample
        if self.counts is not None and count != self.counts[shard]:
            raise DataError(f"{path}: has {count} samples, and {self.counts[shard]} by its manifest or index. Write both anew, and start again.")

    def numbered(self) -> NoReturn:
        """Raises DataError."""
        raise DataError(NUMBERED)

    def preview(self, count: int) -> InMemorySamples:
        """The first `count` samples of the first shard, numbered from 0."""
        found = dict(enumerate(sample for sample, _ in zip(self.read_shard(0), range(count))))
        return InMemorySamples({i: BufferedSample(sample, self.paths[0]) for i, sample in found.items()}, len(found))


# ---- a tar, forward
def tar_samples(path: Shard) -> Iterator[Sample]:
    """The samples of a tar, read once from its start to its end.  Raises DataError."""
    try:
        source, size = forward(path)
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}.") from None
    with closing(source):
        ahead = _Forward(source.read)
        last, fields = "", dict[str, bytes]()
        for key, field, member in index.labeled(members(ahead.read, size, str(path)), str(path)):
            if key != last and fields:
                yield Sample(last, fields)
                fields = {}
            if member.size > SAMPLE_BYTES:
                raise DataError(f"{path}, offset {member.header}: {member.name!r} promises {member.size} bytes; at most {SAMPLE_BYTES} are read.")
            last, fields[field] = key, ahead.read(member.size, member.offset)
            if len(fields[field]) < member.size:
                raise DataError(f"{path}, offset {member.header}: {member.name!r} has {member.size} bytes, the file ends after {len(fields[field])}. "
                                "It is cut off: copy it anew.")
        if not fields:
            raise DataError(f"{path}: {index.EMPTY}")
        yield Sample(last, fields)


class _Forward:
    """Reads at offsets that only grow."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read, self.at = read, 0

    def read(self, n: int, offset: int) -> bytes:
        """n bytes from `offset` on, fewer at the end."""
        self._take(offset - self.at)
        return self._take(n)

    def _take(self, n: int) -> bytes:
        blocks = []
        while n > 0 and (block := self._read(min(n, BLOCK))):
            blocks.append(block)
            n -= len(block)
            self.at += len(block)
        return b"".join(blocks)
