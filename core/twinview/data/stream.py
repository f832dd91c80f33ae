"""Shards that are read from their start to their end, and kept nowhere: for sources that do not fit the disk, or cannot be read by offset.

WebDataset's own iteration is not used: it takes a broken header for the end of a tar, and loses what is behind it without a word.  Here a tar has to
end as tars do, and to hold as many samples as its manifest or index says.
"""
from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.data import index
from twinview.data.draws import key_hash
from twinview.data.order import Order, Shuffled
from twinview.data.remote import Access, Remote
from twinview.data.shards import Sample, shard_paths
from twinview.data.tar import members
from twinview.data.transport import BLOCK, Reading
from twinview.errors import DataError
from twinview.options import Data

log = logging.getLogger(__name__)

UNCOUNTED = 1 << 32  # samples that a shard may have where nobody counted them: ids of the next shard begin behind them
NUMBERED = "[data] streaming: what the run trains with cannot be read by number. Name shards for the evaluation to read."
PROMISES = (
    "[data] streaming: the order depends on ranks and workers, and is shuffled by shards and among %d samples of a worker; an epoch may leave "
    "samples out and have others twice; a resume reads again what its epoch had read."
)


@attrs.frozen(kw_only=True, eq=False)
class Stream:
    """Shards to stream.  What reads samples by number is refused."""

    paths: tuple[Path | Remote, ...]
    counts: tuple[int, ...] | None  # samples of each shard, where all are known
    samples: int

    classes = 0  # nobody has looked at all of them

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
    def about(self) -> Mapping[str, Any]:
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

    def first(self, count: int) -> Hand:
        """The first `count` samples of the first shard, numbered from 0."""
        found = dict(enumerate(sample for sample, _ in zip(self.read_shard(0), range(count))))
        return Hand({i: Held(sample, self.paths[0]) for i, sample in found.items()}, len(found))

    def _refuse(self, *_: Any) -> NoReturn:
        raise DataError(NUMBERED)

    key = key_hash = path = names = read = mates = order = shards_of = _refuse


class Held(NamedTuple):
    """A sample in memory, and where it came from."""

    sample: Sample
    path: Path | Remote


class Hand:
    """Some samples in memory by number; what turns samples into views reads them as it reads shards."""

    classes, checksum = 0, ""

    def __init__(self, held: Mapping[int, Held], length: int) -> None:
        """`length`: beyond all numbers."""
        self.held, self.length = held, length

    def __len__(self) -> int:
        return self.length

    @property
    def about(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    @property
    def paths(self) -> Sequence[Path | Remote]:
        """Where they came from."""
        return tuple(dict.fromkeys(held.path for held in self.held.values()))

    def key(self, i: int) -> str:
        """The key of sample `i`."""
        return self.held[i].sample.key

    def key_hash(self, i: int) -> int:
        """`draws.key_hash` of it."""
        return key_hash(self.key(i))

    def path(self, i: int) -> Path | Remote:
        """The shard that it came from."""
        return self.held[i].path

    def names(self, i: int) -> list[str]:
        """Its fields."""
        return list(self.held[i].sample.fields)

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        """All its fields or those named."""
        key, fields = self.held[i].sample
        return Sample(key, {name: data for name, data in fields.items() if only is None or name in only})

    def mates(self, _: int) -> list[int]:
        """All that are in memory."""
        return list(self.held)

    def shards_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of `paths` holds each of these samples."""
        return np.array([self.paths.index(self.held[int(i)].path) for i in numbers])

    def order(self, seed: int, window: int) -> Order:
        """A shuffle of all."""
        return Shuffled(starts=np.array([0, self.length]), seed=seed)


def open_stream(data: Data, access: Access) -> Stream:
    """What a recipe with `streaming` trains with; says what that cannot promise.  Raises DataError."""
    specs = [data.shards] if isinstance(data.shards, str) else data.shards
    paths = tuple(path for spec in specs for path in shard_paths(spec, access))
    counts = [_count(path) for path in paths]
    known = [count for count in counts if count is not None]
    if len(known) < len(paths) and not data.samples:
        unknown = next(path for path, count in zip(paths, counts) if count is None)
        raise DataError(f"[data] streaming: how many samples {unknown} has is not known. Name a folder with its manifest.json, or write samples = N.")
    if len(known) == len(paths) and data.samples not in (0, sum(known)):
        raise DataError(f"[data] samples: {data.samples}, and the shards have {sum(known)} by their manifest or index. Leave samples out.")
    if os.environ.get("RANK", "0") == "0":
        log.warning(PROMISES, data.buffer)
    return Stream(paths=paths, counts=tuple(known) if len(known) == len(paths) else None, samples=data.samples or sum(known))


def _count(path: Path | Remote) -> int | None:
    if isinstance(path, Remote):
        return path.samples
    if path.is_dir():
        raise DataError(f"[data] streaming: images:{path} is a folder of images, and is read as it lies. Leave streaming out.")
    found = index.read(path)
    return None if found is None else len(found)


# ---- a tar, forward
class _Source(Protocol):
    def read(self, n: int, /) -> bytes: ...

    def close(self) -> None: ...


def tar_samples(path: Path | Remote) -> Iterator[Sample]:
    """The samples of a tar, read once from its start to its end.  Raises DataError."""
    try:
        source, size = _source(path)
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}.") from None
    with closing(source):
        forward = _Forward(source.read)
        last, fields = "", dict[str, bytes]()
        for key, field, member in index.labelled(members(forward.read, size, str(path)), str(path)):
            if key != last and fields:
                yield Sample(last, fields)
                fields = {}
            last, fields[field] = key, forward.read(member.size, member.offset)
            if len(fields[field]) < member.size:
                raise DataError(f"{path}, offset {member.header}: {member.name!r} has {member.size} bytes, the file ends after {len(fields[field])}. "
                                "It is cut off: copy it anew.")
        if not fields:
            raise DataError(f"{path}: {index.EMPTY}")
        yield Sample(last, fields)


def _source(path: Path | Remote) -> tuple[_Source, int | None]:
    if isinstance(path, Remote):
        return Reading(path.url, path.known), path.known.size
    return path.open("rb"), path.stat().st_size


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
