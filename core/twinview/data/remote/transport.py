"""The bytes of a URL from start to end: http(s) by Python's own client, `pipe:` by a program without a shell, any other protocol by fsspec.

http needs no package here: fsspec's client says "not found" whatever the server answered, and status, ETag and Range are wanted.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TypeVar

from twinview.data.remote.base import BLOCK, PIPE, ByteStream, Info, Missing, Unreachable, client_faults, shown
from twinview.data.remote.fsspec import filesystem, fsspec_info, fsspec_open
from twinview.data.remote.http import http_info, http_open, is_http
from twinview.data.remote.pipe import Program
from twinview.data.store.regular import SMALL_BYTES
from twinview.errors import DataError

T = TypeVar("T")
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds between tries that brought nothing


def info(url: str) -> Info:
    """Size and version of a file.  Raises DataError."""
    return _tried(url, lambda: http_info(url) if is_http(url) else fsspec_info(url))


def small(url: str) -> bytes | None:
    """The whole of a file that is small; None where there is none.  Raises DataError."""

    def read() -> bytes | None:
        try:
            with closing(_open(url, 0, Info(None, ""))) as stream:
                found = bytearray()
                while data := _read(stream, BLOCK):
                    found += data
                    if len(found) > SMALL_BYTES:
                        raise Unreachable(f"does not end after {SMALL_BYTES} bytes: it is no manifest and no index", False)
                return bytes(found)
        except Missing:
            return None

    return _tried(url, read)


def listing(url: str) -> list[str] | None:
    """The URLs that a `*` stands for, in order; None where the protocol lists nothing.  Raises DataError."""
    if is_http(url):
        return None

    def find() -> list[str]:
        with client_faults():
            system, path = filesystem(url)
            return sorted(system.unstrip_protocol(found) for found in system.glob(path))

    return _tried(url, find)


class ResumableReader:
    """A file read forward; a connection that breaks is made again where it broke, in up to five tries that bring nothing."""

    def __init__(self, url: str, known: Info) -> None:
        self.url, self.known, self.at = url, known, 0
        self._stream: ByteStream | None = None

    def read(self, n: int) -> bytes:
        """At most n bytes, none at the end.  Raises DataError: unreachable, changed since `known`, of another length."""
        return _tried(self.url, lambda: self._read(n))

    def exactly(self, n: int) -> bytes:
        """n bytes, or fewer at the end."""
        found = bytearray()
        while len(found) < n and (more := self.read(min(n - len(found), BLOCK))):
            found += more
        return bytes(found)

    def _read(self, n: int) -> bytes:
        try:
            if self._stream is None:
                self._stream = _open(self.url, self.at, self.known)
            with client_faults():
                data = self._stream.read(n)
            size = self.known.size
            if size is not None and (self.at + len(data) > size or (not data and self.at < size)):
                raise Unreachable(f"ends after {self.at + len(data)} bytes, and said that it has {size}", True)
        except Unreachable:
            self.close()
            raise
        self.at += len(data)
        return data

    def close(self) -> None:
        """Let go of the connection."""
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()
            self._stream = None


def _tried(url: str, work: Callable[[], T]) -> T:
    for pause in (*PAUSES, None):
        try:
            return work()
        except Unreachable as e:
            if pause is None or not e.passing:
                times = f" ({len(PAUSES) + 1} tries)" if e.passing else ""
                raise DataError(f"{shown(url)}: {e}{times}.") from None
            time.sleep(pause)
    raise AssertionError


def _open(url: str, offset: int, known: Info) -> ByteStream:
    """A stream that begins at `offset`.  Raises Unreachable, also where the file is no longer the one that is known."""
    if url.startswith(PIPE):
        stream: ByteStream = Program(url)
    elif is_http(url):
        stream, offset = http_open(url, offset, known)
    else:
        stream, offset = fsspec_open(url, offset, known)
    try:
        while offset and (skipped := _read(stream, min(offset, BLOCK))):
            offset -= len(skipped)
    except BaseException:
        stream.close()
        raise
    return stream


def _read(stream: ByteStream, size: int) -> bytes:
    """The next bytes.  Raises Unreachable where the connection breaks."""
    with client_faults():
        return stream.read(size)
