"""Keys that stand twice, found by their hashes: in memory where they are few, in sorted runs on disk where they are many."""
from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
RUN = 1 << 24  # hashes that are sorted in memory at once: 128 MiB


def twins(hashes: Sequence[Ints], run: int = RUN) -> Iterator[tuple[int, int]]:
    """Places (first, other) of keys with one hash: equal ones, and hardly ever others.  Places count through all arrays."""
    twice = _repeated(hashes, run)
    places: dict[int, int] = {}
    for start, part in _parts(hashes, run):
        if len(twice):
            for at in np.flatnonzero(np.isin(part, twice)).tolist():
                value = int(part[at])
                if (first := places.setdefault(value, start + at)) != start + at:
                    yield first, start + at


def _repeated(hashes: Sequence[Ints], run: int) -> Ints:
    """The hashes that are there more than once."""
    total = sum(map(len, hashes))
    if total <= run:
        return _doubles(np.sort(np.concatenate([*hashes, np.empty(0, np.int64)])))
    with tempfile.TemporaryDirectory(prefix="twinview-") as folder:
        runs = []
        for number, (_, part) in enumerate(_parts(hashes, run)):
            np.sort(part).tofile(Path(folder) / str(number))
            runs.append(np.memmap(Path(folder) / str(number), np.int64, "r"))
        count = len(runs)
        edges = np.array([-(1 << 63) + (i << 64) // count for i in range(count)], dtype=np.int64)  # hashes are spread evenly
        cuts = np.array([[*np.searchsorted(one, edges), len(one)] for one in runs])
        found = [_doubles(np.sort(np.concatenate([one[cut[i] : cut[i + 1]] for one, cut in zip(runs, cuts)]))) for i in range(count)]
        return np.concatenate(found)


def _doubles(ordered: Ints) -> Ints:
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _parts(hashes: Sequence[Ints], run: int) -> Iterator[tuple[int, Ints]]:
    """Pieces of about `run` hashes, several arrays joined or one cut, each with the place of its first."""
    waiting, size, start = list[Ints](), 0, 0
    for array in hashes:
        for at in range(0, len(array), run):
            piece = array[at : at + run]
            if size + len(piece) > run:
                yield start, np.concatenate(waiting)
                start, waiting, size = start + size, [], 0
            waiting.append(piece)
            size += len(piece)
    if waiting:
        yield start, np.concatenate(waiting)
