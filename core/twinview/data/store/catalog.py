"""The indexes of many shards as one, on disk: built once out of the shards' own, then mapped by every process of a machine that reads them.

    catalogs/PATHS-STAMPS/   hashes keys ...   the arrays of all indexes, one behind the other, plain numbers without a header
                             shards.npz        of each shard: samples, files, bytes of keys, classes, stamp, which list of fields
                             meta.json         lists of fields, checksum, sizes of the arrays
    catalogs/PATHS.lock      held by the process that builds

PATHS is a hash of the shards' paths, STAMPS of their sizes and times of change: a catalog is fresh if there is one of this name.  Pages that are read
are shared by all processes and given back when memory is short; nothing that grows with the samples is held besides.
"""
from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinview.data.store.index import ARRAYS, Index, Stamp
from twinview.files import locked
from twinview.paths import cache

FORMAT = 1
TYPES: dict[str, type[np.integer[Any]]] = {**dict.fromkeys(ARRAYS, np.int64), "keys": np.uint8, "kinds": np.int32}
SHARDS, SAMPLES = 256, 200_000  # from here on a catalog pays: fewer indexes are read into memory in no time, and take little
ROW = 64  # bytes of an index that a sample takes, about
KEPT = 256  # shards whose arrays are at hand


class Catalog(Sequence[Index]):
    """The indexes of shards 0 to n - 1.  Safe to fork, and pickled as the name of its folder."""

    def __init__(self, folder: Path) -> None:
        """Map a catalog.  Raises OSError, ValueError, KeyError where there is none, or a damaged one."""
        self.folder = folder
        meta = json.loads((folder / "meta.json").read_bytes())
        if meta["format"] != FORMAT:
            raise ValueError("of another format")
        self.checksum: str = meta["checksum"]
        self._fields = [tuple(names) for names in meta["fields"]]
        with np.load(folder / "shards.npz") as shards:
            table = {name: shards[name] for name in shards.files}
        self.samples, self.classes, self.stamps, self._kinds = (table[name] for name in ("samples", "classes", "stamps", "fields"))
        steps = {"keys": table["keys"], "hashes": self.samples, "key_starts": self.samples + 1, "members": self.samples + 1}
        self._starts = {name: np.concatenate([[0], np.cumsum(steps.get(name, table["files"]))]) for name in ARRAYS}  # [shards + 1] into each array
        for name in ARRAYS:
            if (folder / name).stat().st_size != self._starts[name][-1] * np.dtype(TYPES[name]).itemsize:
                raise ValueError(f"{name} has another size")
        self._arrays = {name: _mapped(folder / name, TYPES[name]) for name in ARRAYS}
        self._kept: OrderedDict[int, Index] = OrderedDict()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, shard: Any) -> Any:
        if shard not in self._kept:
            if not 0 <= shard < len(self):
                raise IndexError(shard)
            arrays = {name: self._arrays[name][self._starts[name][shard] : self._starts[name][shard + 1]] for name in ARRAYS}
            stamp = Stamp(*map(int, self.stamps[shard]))
            self._kept[shard] = Index(stamp=stamp, fields=self._fields[self._kinds[shard]], classes=int(self.classes[shard]), **arrays)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[shard]

    def __reduce__(self) -> Any:
        return Catalog, (self.folder,)

    @property
    def hashes(self) -> NDArray[np.int64]:
        """[all samples] of their keys."""
        return self._arrays["hashes"]

    @property
    def fields(self) -> set[str]:
        """Every field that some shard has."""
        return {field for fields in self._fields for field in fields}

    @property
    def nbytes(self) -> int:
        """On disk."""
        return sum(array.nbytes for array in self._arrays.values())


def find(place: Path) -> Catalog | None:
    """The catalog that lies there, or None."""
    try:
        return Catalog(place)
    except Exception:  # whatever is wrong with it, it can be built anew
        return None


def place_of(names: Iterable[str | Path], versions: Iterable[Stamp | str]) -> Path:
    """Where the catalog of these shards, as they are now, would lie."""
    paths, stamps = hashlib.blake2b(digest_size=12), hashlib.blake2b(digest_size=12)
    for name, version in zip(names, versions, strict=True):
        paths.update(os.fsencode(os.path.abspath(name) if isinstance(name, Path) else name) + b"\0")
        stamps.update(f"{version if isinstance(version, str) else tuple(version)}\0".encode())
    return cache() / "catalogs" / f"{paths.hexdigest()}-{stamps.hexdigest()}"


def build(place: Path, indexes: Callable[[], Iterable[Index]], check: Callable[[Catalog], None], *, rebuild: bool = False) -> Catalog:
    """The catalog at `place`, made of `indexes()` where no other process has made it meanwhile (or `rebuild`); older ones of the same paths go.

    `check` may refuse it.  Raises OSError where it cannot be written, and what `indexes` and `check` raise.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    paths = place.name.partition("-")[0]
    with locked(place.parent / f"{paths}.lock"):
        if not rebuild and (found := find(place)) is not None:
            return found
        fresh = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            write(fresh, indexes())
            check(Catalog(fresh))
            for older in (*place.parent.glob(f"{paths}-*"), *place.parent.glob(f".{paths}-*.tmp")):
                if older != fresh:
                    shutil.rmtree(older, ignore_errors=True)  # whoever maps it keeps it
            os.rename(fresh, place)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return Catalog(place)


def write(folder: Path, indexes: Iterable[Index]) -> None:
    """Write a catalog, one index after another.  Raises OSError."""
    folder.mkdir(parents=True)
    lists: dict[tuple[str, ...], int] = {}
    rows = list[tuple[int, ...]]()
    digest = hashlib.blake2b(digest_size=16)
    with ExitStack() as opened:
        files = {name: opened.enter_context((folder / name).open("wb", buffering=1 << 20)) for name in ARRAYS}
        for found in indexes:
            digest_index(digest, found)
            for name in ARRAYS:
                files[name].write(np.asarray(getattr(found, name), TYPES[name]).tobytes())
            kind = lists.setdefault(found.fields, len(lists))
            rows.append((len(found), len(found.offsets), len(found.keys), found.classes, *found.stamp, kind))
    finish(folder, np.array(rows, np.int64).reshape(-1, 7), list(lists), digest.hexdigest())


def finish(folder: Path, rows: NDArray[np.int64], fields: Sequence[Sequence[str]], checksum: str) -> None:
    """Write what a catalog says of each shard.

    `rows` [shards, 7]: samples, files, bytes of keys, classes, size and time of change of the shard, number of its list of fields.
    """
    named = {"samples": rows[:, 0], "files": rows[:, 1], "keys": rows[:, 2], "classes": rows[:, 3], "stamps": rows[:, 4:6], "fields": rows[:, 6]}
    np.savez(folder / "shards.npz", **named)  # type: ignore[arg-type]
    (folder / "meta.json").write_text(json.dumps({"format": FORMAT, "fields": [list(one) for one in fields], "checksum": checksum}))


def digest_index(digest: Any, found: Any) -> None:
    """Add an index, or that of a folder of images, to the checksum of a set of shards."""
    digest.update(json.dumps([len(found), found.fields]).encode())
    for array in found.content:
        digest.update(array.tobytes())


def _mapped(path: Path, kind: type[np.integer[Any]]) -> NDArray[Any]:
    """A file as an array.  All but the hashes, which are read through where they are compared, are read here and there: no neighbors ahead."""
    if not path.stat().st_size:
        return np.empty(0, kind)
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if path.name != "hashes":
        pages.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(pages, kind)
