"""Where the samples of a shard lie: an index over an ordinary tar in WebDataset's layout, kept beside it as `x.tar.index.npz`.

Key = a member's name up to the first dot of its last component; field = the rest, lower-cased.  Nothing is extracted or unpickled.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.data.rng import key_hash
from twinview.data.store.arrays import stored_arrays
from twinview.data.store.regular import open_regular, read_regular
from twinview.data.store.tar import Member, members
from twinview.errors import DataError
from twinview.files import write_atomic

FORMAT = 1
SUFFIX = ".index.npz"
EMPTY = "holds no samples. WebDataset names the files of a tar KEY.FIELD, for example 000123.jpg."
Split = Callable[[str], tuple[str, str]]
ARRAYS = ("hashes", "keys", "key_starts", "members", "offsets", "sizes", "kinds")


class Stamp(NamedTuple):
    """What a file's index is known to be fresh by."""

    size: int
    mtime_ns: int


@attrs.frozen(kw_only=True, eq=False)
class Index:
    """Samples of one shard, in the order of the tar; n samples of m members, as arrays that forked workers share."""

    stamp: Stamp
    fields: tuple[str, ...]  # names that `kinds` counts
    classes: int  # 1 + the largest class number of the field `cls`; 0 where one is missing or no number
    hashes: NDArray[np.int64]  # [n] of the keys
    keys: NDArray[np.uint8]  # all keys, one behind the other
    key_starts: NDArray[np.int64]  # [n + 1] into `keys`
    members: NDArray[np.int64]  # [n + 1] first member of each sample
    offsets: NDArray[np.int64]  # [m] of the bytes in the tar
    sizes: NDArray[np.int64]  # [m]
    kinds: NDArray[np.int32]  # [m] field

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def content(self) -> Iterator[NDArray[Any]]:
        """What a checksum is of."""
        yield from (getattr(self, name) for name in ARRAYS)

    def key(self, i: int) -> str:
        """The key of sample `i`."""
        return self.keys[self.key_starts[i] : self.key_starts[i + 1]].tobytes().decode("utf-8", "surrogateescape")

    def files(self, i: int) -> Iterator[tuple[str, int, int]]:
        """(field, offset, size) of each file of sample `i`."""
        for m in range(int(self.members[i]), int(self.members[i + 1])):
            yield self.fields[self.kinds[m]], int(self.offsets[m]), int(self.sizes[m])


def load(path: Path) -> Index:
    """A shard's index from its side-car file, built where that is missing, stale or damaged.  Raises DataError."""
    return read(path) or build(path)


def read(path: Path) -> Index | None:
    """A shard's index from its side-car file; None where that is missing, stale or damaged."""
    try:
        found = parse(sidecar(path))
        return found if found.stamp == stamp(path) else None
    except Exception:  # whatever is wrong with it, it can be built anew
        return None


def parse(file: Path | bytes) -> Index:
    """The index that a side-car file, or its content, holds.  Raises whatever is wrong with it."""
    arrays = stored_arrays(file if isinstance(file, bytes) else read_regular(file, None))
    meta = json.loads(arrays["meta"].tobytes())
    if meta["format"] != FORMAT:
        raise ValueError("of another format")
    named = {name: arrays[name] for name in ARRAYS}
    return Index(stamp=Stamp(*meta["stamp"]), fields=tuple(meta["fields"]), classes=meta["classes"], **named)


def build(path: Path) -> Index:
    """Scan a shard and write its side-car file; where the folder cannot be written, the index is only returned.  Raises DataError."""
    index = scan(path)
    with suppress(OSError):
        write(path, index, path.stat().st_mode & 0o666)  # whoever reads the shard may read its index
    return index


def write(path: Path, index: Index, mode: int) -> None:
    """Write the side-car file of a shard.  Raises OSError."""
    meta = {"format": FORMAT, "stamp": index.stamp, "fields": index.fields, "classes": index.classes}
    save(sidecar(path), meta, {name: getattr(index, name) for name in ARRAYS}, mode)


def save(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, Any], mode: int = 0o600) -> None:
    """Write an index, whole or not at all.  Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(path, mode=mode) as file:
        np.savez(file, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)
        os.chmod(file.fileno(), mode)  # whatever this process's umask would take away


def scan(path: Path, name: str = "", rule: Split | None = None) -> Index:
    """Read every header of a shard.  Raises DataError with the shard (`name`, or its path), the offset and what is wrong there.

    `rule` cuts a member's name into key and field, otherwise than `split`.
    """
    now, name = stamp(path), name or str(path)
    kinds: dict[str, int] = {}
    keys: list[str] = []
    files: list[tuple[int, int, int]] = []
    firsts: list[int] = []
    classes: list[int | None] = []
    with _open(path) as file:
        for key, field, member in labeled(members(partial(os.pread, file.fileno()), now.size, name), name, rule):
            if not keys or key != keys[-1]:
                firsts.append(len(files))
                keys.append(key)
            files.append((member.offset, member.size, kinds.setdefault(field, len(kinds))))
            if field == "cls":
                classes.append(_class(file.fileno(), member))
    if not files:
        raise DataError(f"{name}: {EMPTY}")
    names = [key.encode("utf-8", "surrogateescape") for key in keys]
    table = np.array(files, np.int64)
    return Index(
        stamp=now,
        fields=tuple(kinds),
        classes=1 + max(c for c in classes if c is not None) if len(classes) == len(keys) and None not in classes else 0,
        hashes=np.fromiter((key_hash(key) for key in keys), np.int64, len(keys)),
        keys=np.frombuffer(b"".join(names), np.uint8),
        key_starts=np.cumsum([0, *map(len, names)], dtype=np.int64),
        members=np.array([*firsts, len(files)], np.int64),
        offsets=table[:, 0].copy(),
        sizes=table[:, 1].copy(),
        kinds=table[:, 2].astype(np.int32),
    )


def labeled(found: Iterable[Member], shard: str, rule: Split | None = None) -> Iterator[tuple[str, str, Member]]:
    """Key and field of each member that belongs to a sample.  Raises DataError: a key or field that stands twice in the shard."""
    seen: dict[str, int] = {}  # key -> offset of its first file
    last, fields = "", set[str]()
    for member in found:
        key, field = (rule or split)(member.name)
        if not field:
            continue
        if key != last:
            if key in seen:
                raise DataError(f"{shard}, offset {member.header}: the key {key!r} stands already at offset {seen[key]}. "
                                "Keys name samples, and the files of a sample stand together; pack the shard anew.")
            seen[key] = member.header
            last, fields = key, set()
        if field in fields:
            raise DataError(f"{shard}, offset {member.header}: the sample {key!r} has a second file {field!r}. Give one of them another name.")
        fields.add(field)
        yield key, field, member


def split(name: str) -> tuple[str, str]:
    """`a/b.seg.PNG` -> (`a/b`, `seg.png`).  The field is empty for what WebDataset passes over: no dot, a dot file, `__meta__`."""
    folder, slash, base = name.rpartition("/")
    stem, _, field = base.partition(".")
    if not stem or (stem.startswith("__") and stem.endswith("__")):
        return name, ""
    return folder + slash + stem, field.lower()


def split_at_last_dot(name: str) -> tuple[str, str]:
    """`a/v1.2/b.0001.JPG` -> (`a/v1.2/b.0001`, `jpg`), for names whose dots are no fields; `b.0001.seg.png` keeps its field `seg.png`."""
    folder, slash, base = name.rpartition("/")
    stem, _, field = base.rpartition(".")
    if stem.endswith(".seg") and field.lower() == "png":
        stem, field = stem.removesuffix(".seg"), "seg.png"
    if not stem or stem.startswith(".") or (stem.startswith("__") and stem.endswith("__")):
        return name, ""
    return folder + slash + stem, field.lower()


def sidecar(path: Path) -> Path:
    """Where the index of a shard lies."""
    return path.with_name(path.name + SUFFIX)


def stamp(path: Path) -> Stamp:
    """What a shard's index is fresh by.  Raises DataError."""
    try:
        found = os.stat(path)
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}.") from None
    return Stamp(found.st_size, found.st_mtime_ns)


def _open(path: Path) -> BinaryIO:
    try:
        return os.fdopen(open_regular(path), "rb")
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}.") from None
    except ValueError as e:
        raise DataError(f"{path}: {e}.") from None


def _class(file: int, member: Member) -> int | None:
    text = os.pread(file, min(member.size, 64), member.offset).strip()
    return int(text) if text.isdigit() and member.size <= 64 else None
