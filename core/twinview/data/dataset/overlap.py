"""Samples that two sets have in common."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinview.data.dataset.base import DataSource
from twinview.data.dataset.mixture import Mixture, Subset
from twinview.data.dataset.shards import Shards
from twinview.data.remote.anywhere import Shard


def shared_samples(one: DataSource, other: DataSource) -> int:
    """How many samples of `one` are samples of `other` too: of the same key in the same file, or all where the checksums agree, wherever they lie."""
    if one.checksum and one.checksum == other.checksum:
        return len(one)
    common = {*map(_name, one.paths)} & {*map(_name, other.paths)}
    if not common:
        return 0
    mine, theirs = (_hashes(samples, common) for samples in (one, other))
    return sum(len(np.intersect1d(np.concatenate(mine[name]), np.concatenate(theirs[name]))) for name in mine.keys() & theirs.keys())


def _hashes(samples: DataSource, names: set[str]) -> dict[str, list[NDArray[np.int64]]]:
    """Of the named files, the hashes of the keys of those samples that a set has of them."""
    found: dict[str, list[NDArray[np.int64]]] = {}
    for part in _parts(samples):
        hashes, starts = part.shards.hashes, part.shards.starts
        for shard, path in enumerate(part.shards.paths):
            if (name := _name(path)) in names:
                begin, end = int(starts[shard]), int(starts[shard + 1])
                own = hashes[shard] if len(hashes) == len(part.shards.paths) else hashes[0][begin:end]
                if not isinstance(part.rows, range):
                    first, last = np.searchsorted(part.rows, [begin, end])
                    own = own[part.rows[first:last] - begin]
                found.setdefault(name, []).append(own)
    return found


def _parts(samples: DataSource) -> Iterator[Subset]:
    if isinstance(samples, Mixture):
        yield from samples.parts
    elif isinstance(samples, Shards):
        yield Subset(name="", shards=samples, rows=range(len(samples)))


def _name(path: Shard) -> str:
    return str(path.resolve() if isinstance(path, Path) else path)
