"""The indexes of shards on this machine: few in memory, many as a catalog that all processes of the machine map."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from twinview.data.store import catalog, index
from twinview.data.store.index import Index, Stamp
from twinview.data.threads import in_order, in_threads
from twinview.progress import progress

READERS = 4
TOGETHER = 8  # shards that a thread reads the indexes of, where there are many: handing over one takes a tenth of reading it
CHUNK = 512  # shards that a thread asks the file system about


def indexes_of(paths: Sequence[Path], check: Callable[[catalog.Catalog], None], *, rebuild: bool = False) -> Sequence[Index]:
    """The indexes of tars, made where they are missing or stale; `rebuild` makes all anew.

    `check` may refuse a catalog before it is kept.  Raises DataError.
    """
    stamps = _stamps(paths)
    if not rebuild and (found := catalog.find(catalog.place_of(paths, stamps))) is not None:
        return found
    if len(paths) <= catalog.SHARDS and sum(map(_size, paths)) <= catalog.SAMPLES * catalog.ROW:
        return shared(paths, stamps, list(_read(paths, rebuild)), check)
    return kept(catalog.place_of(paths, stamps), lambda: _read(paths, rebuild), check, rebuild=rebuild)


def shared(
    names: Sequence[str | Path], versions: Sequence[Stamp | str], found: Sequence[Index], check: Callable[[catalog.Catalog], None]
) -> Sequence[Index]:
    """The same indexes; as a catalog where they are many, which memory then holds once, if at all.  Raises what `check` raises."""
    if len(found) <= catalog.SHARDS and sum(map(len, found)) <= catalog.SAMPLES:
        return found
    return kept(catalog.place_of(names, versions), lambda: iter(found), check)


def kept(
    place: Path, read: Callable[[], Iterator[Index]], check: Callable[[catalog.Catalog], None], *, rebuild: bool = False
) -> Sequence[Index]:
    """A catalog of these indexes; where none can be written, the indexes themselves."""
    try:
        return catalog.build(place, read, check, rebuild=rebuild)
    except OSError:
        return list(read())


def _read(paths: Sequence[Path], rebuild: bool) -> Iterator[Index]:
    """In order, a few ahead."""
    def some(chunk: Sequence[Path]) -> list[Index]:
        return [(None if rebuild else index.read(path)) or index.build(path) for path in chunk]

    size = min(TOGETHER, 1 + len(paths) // 64)
    chunks = [paths[at : at + size] for at in range(0, len(paths), size)]
    found = (one for several in in_order(some, chunks, READERS if len(paths) > 1 else 1) for one in several)
    yield from progress(found, len(paths), "index", "shards")


def _stamps(paths: Sequence[Path]) -> list[Stamp]:
    """Sizes and times of change.  Raises DataError."""
    chunks = [paths[at : at + CHUNK] for at in range(0, len(paths), CHUNK)]
    if len(chunks) == 1:
        return [index.stamp(path) for path in paths]
    return [stamp for stamps in in_threads(lambda chunk: [index.stamp(path) for path in chunk], chunks, "open") for stamp in stamps]


def _size(path: Path) -> int:
    """Of a shard's index; 0 where there is none."""
    try:
        return os.stat(index.sidecar(path)).st_size
    except OSError:
        return 0
