"""A shard on this machine or elsewhere, read alike: the one file, beside `shard.remote_of`, that asks which of the two it is."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from twinview.data.remote.base import base_name, on_path
from twinview.data.remote.shard import RemoteShard
from twinview.data.remote.transport import ResumableReader
from twinview.data.store import index, manifest
from twinview.data.store.regular import open_regular
from twinview.errors import DataError

Shard = Path | RemoteShard  # a path may also be a folder of images


class ByteSource(Protocol):
    """Bytes from the first to the last."""

    def read(self, n: int, /) -> bytes:
        """The next `n` bytes, fewer at the end."""
        ...

    def close(self) -> None:
        """Give the file or the connection back."""
        ...


def file_name(shard: Shard) -> str:
    """Its name, as a manifest lists it."""
    return base_name(shard.url) if isinstance(shard, RemoteShard) else shard.name


def manifest_place(shard: Shard) -> str:
    """Where the manifest of a shard, or of a folder of images, would lie: a path or a URL."""
    if isinstance(shard, RemoteShard):
        return on_path(shard.url, lambda place: f"{place.rpartition('/')[0]}/{manifest.NAME}")
    return str((shard if shard.is_dir() else shard.parent) / manifest.NAME)


def descriptor(shard: Shard) -> int:
    """A descriptor of its file, fetched where it lies elsewhere.  Raises DataError."""
    if isinstance(shard, RemoteShard):
        return shard.open()
    try:
        return open_regular(shard)
    except (OSError, ValueError) as e:
        raise DataError(f"{shard}: {getattr(e, 'strerror', None) or e}.") from None


def local_copy(shard: Shard) -> Path:
    """Its file on this machine, fetched where it lies elsewhere, and again where the one in the cache is damaged.  Raises DataError."""
    if isinstance(shard, RemoteShard):
        shard.check_kept()
        shard.fetch()
        return shard.path
    return shard


def forward(shard: Shard) -> tuple[ByteSource, int | None]:
    """Its bytes in order, kept nowhere, and how many they are where that is known.  Raises DataError, OSError."""
    if isinstance(shard, RemoteShard):
        return ResumableReader(shard.url, shard.known), shard.known.size
    try:
        return os.fdopen(open_regular(shard), "rb"), shard.stat().st_size
    except ValueError as e:
        raise DataError(f"{shard}: {e}.") from None


def count(shard: Shard) -> int | None:
    """How many samples it has by its manifest or its index; None where neither says.  Raises DataError for a folder of images."""
    if isinstance(shard, RemoteShard):
        return shard.samples
    if shard.is_dir():
        raise DataError(f"[data] streaming: images:{shard} is a folder of images, and is read as it lies. Leave streaming out.")
    found = index.read(shard)
    return None if found is None else len(found)
