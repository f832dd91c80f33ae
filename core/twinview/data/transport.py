"""The bytes of a URL from start to end: http(s) by Python's own client, `pipe:` by a program without a shell, any other protocol by fsspec.

http needs no package here: fsspec's client says "not found" whatever the server answered, and status, ETag and Range are wanted.
"""
from __future__ import annotations

import http.client
import netrc
import os
import selectors
import shlex
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from twinview import __version__
from twinview.errors import DataError

T = TypeVar("T")

BLOCK = 1 << 20  # bytes read at once
SILENCE = 20.0  # seconds without a byte after which a server is given up
PIPE_SILENCE = 300.0  # a program may have to log in, or to wait for a tape
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds between tries that brought nothing
PASSING = (408, 425, 429)  # answers of http that may be another one later; so may all from 500 on
PIPE = "pipe:"
PACKAGES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> extra of twinview that installs what fsspec wants
VERSIONS = ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "last_modified", "mtime", "updated", "created")  # the first that is there


class Unreachable(Exception):
    """Why a try failed, and whether another may succeed."""

    def __init__(self, why: str, passing: bool) -> None:
        super().__init__(why)
        self.passing = passing


class Info(NamedTuple):
    """What is known of a file before it is read."""

    size: int | None  # bytes
    version: str  # changes when the file does; empty where nobody says


class Stream(Protocol):
    """Bytes that come once."""

    def read(self, n: int, /) -> bytes:
        """At most n bytes; none at the end."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def shown(url: str) -> str:
    """A URL as messages name it: without a query, which may hold a signature."""
    return url if url.startswith(PIPE) else url.partition("?")[0]


def on_path(url: str, change: Callable[[str], str]) -> str:
    """The URL with another path; its query stays."""
    path, mark, query = url.partition("?")
    return f"{change(path)}{mark}{query}"


def base_name(url: str) -> str:
    """The last part of a URL's path."""
    return url.partition("?")[0].rpartition("/")[2]


def info(url: str) -> Info:
    """Size and version of a file.  Raises DataError."""
    return _tried(url, lambda: _http_info(url) if _is_http(url) else _fsspec_info(url))


def small(url: str) -> bytes | None:
    """The whole of a file that is small; None where there is none.  Raises DataError."""

    def read() -> bytes | None:
        try:
            with closing(_open(url, 0, Info(None, ""))) as stream:
                return b"".join(iter(lambda: stream.read(BLOCK), b""))
        except _Missing:
            return None

    return _tried(url, read)


def listing(url: str) -> list[str] | None:
    """The URLs that a `*` stands for, in order; None where the protocol lists nothing.  Raises DataError."""
    if _is_http(url):
        return None

    def find() -> list[str]:
        with _reasons():
            system, path = _filesystem(url)
            return sorted(system.unstrip_protocol(found) for found in system.glob(path))

    return _tried(url, find)


class Reading:
    """A file read forward; a connection that breaks is made again where it broke, in up to five tries that bring nothing."""

    def __init__(self, url: str, known: Info) -> None:
        self.url, self.known, self.at = url, known, 0
        self._stream: Stream | None = None

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
            with _reasons():
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


class _Missing(Unreachable):
    pass


def _open(url: str, offset: int, known: Info) -> Stream:
    """A stream that begins at `offset`.  Raises Unreachable, also where the file is no longer the one that is known."""
    if url.startswith(PIPE):
        stream: Stream = _Program(url)
    elif _is_http(url):
        stream, offset = _http_open(url, offset, known)
    else:
        stream, offset = _fsspec_open(url, offset, known)
    try:
        while offset and (skipped := stream.read(min(offset, BLOCK))):
            offset -= len(skipped)
    except BaseException:
        stream.close()
        raise
    return stream


def _changed(known: Info, found: Info) -> bool:
    return any(was and now and was != now for was, now in zip(known, found))


def _check_same(known: Info, found: Info) -> None:
    if _changed(known, found):
        raise Unreachable("has changed there since it was opened. Leave shards alone while they are read, and start again", False)


@contextmanager
def _reasons() -> Iterator[None]:
    """Whatever a client raises becomes Unreachable, with one line."""
    try:
        yield
    except (Unreachable, DataError):
        raise
    except urllib.error.HTTPError as e:
        kind = _Missing if e.code in (404, 410) else Unreachable
        e.close()
        raise kind(f"the server answers {e.code} {e.reason}".rstrip(), e.code in PASSING or e.code >= 500) from None
    except (FileNotFoundError, IsADirectoryError):
        raise _Missing("there is no such file", False) from None
    except PermissionError as e:
        raise Unreachable(f"may not be read ({_line(e)})", False) from None
    except (http.client.InvalidURL, UnicodeError) as e:
        raise Unreachable(f"is no URL: {_line(e)}. Write other characters as %20, and hosts in ASCII", False) from None
    except Exception as e:  # clients of object stores have exceptions of their own
        reason = e.reason if isinstance(e, urllib.error.URLError) else e
        what = f"no byte in {SILENCE:.0f} s" if isinstance(reason, TimeoutError) else _line(reason)
        raise Unreachable(f"cannot be reached: {what}", True) from None


def _line(e: object) -> str:
    text = getattr(e, "strerror", None) or " ".join(str(e).split())
    return (text or type(e).__name__).rstrip(".")


# ---- http
def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _request(url: str, method: str, offset: int = 0) -> Any:
    request = urllib.request.Request(url, method=method, headers={"User-Agent": f"twinview/{__version__}", "Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    if login := _login(urlsplit(url).hostname or ""):
        request.add_unredirected_header("Authorization", "Basic " + b64encode(login.encode()).decode())
    with _reasons():
        return urllib.request.urlopen(request, timeout=SILENCE)


def _login(host: str) -> str:
    """NAME:PASSWORD of ~/.netrc; empty where it has none."""
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return ""
    return f"{found[0]}:{found[2]}" if found else ""


def _http_info(url: str) -> Info:
    try:
        answer = _request(url, "HEAD")
    except _Missing:
        raise
    except Unreachable as e:
        if e.passing:
            raise
        answer = _request(url, "GET")  # some servers, and URLs that are signed for GET, refuse HEAD
    with closing(answer):
        return _said(answer, 0)


def _said(answer: Any, offset: int) -> Info:
    length = answer.headers.get("Content-Length", "")
    version = next((answer.headers[name] for name in VERSIONS if answer.headers.get(name)), "")
    return Info(offset + int(length) if length.isdigit() else None, version)


def _http_open(url: str, offset: int, known: Info) -> tuple[Stream, int]:
    """A stream, and how many bytes of it lie before the offset: servers may ignore a Range."""
    answer = _request(url, "GET", offset)
    begins = offset if answer.status == http.client.PARTIAL_CONTENT else 0
    said = _said(answer, begins)
    try:
        _check_same(known, said)
    except Unreachable:
        answer.close()
        raise
    return _Answer(answer, said.size - begins if said.size is not None else None), offset - begins


class _Answer:
    """The body of an answer, as long as the answer says it is; Python's client takes a connection that was cut for its end."""

    def __init__(self, answer: Any, left: int | None) -> None:
        self.answer, self.left = answer, left

    def read(self, n: int) -> bytes:
        data: bytes = self.answer.read(n)
        if self.left is not None:
            self.left -= len(data)
            if self.left and not data:
                raise Unreachable(f"was cut {self.left} bytes before its end", True)
        return data

    def close(self) -> None:
        self.answer.close()


# ---- fsspec
def _filesystem(url: str) -> tuple[Any, str]:
    """Raises DataError where the protocol, or the package that speaks it, is missing."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as e:
        extra = PACKAGES.get(protocol)
        install = f"Install it: pip install 'twinview[{extra}]'" if extra else _line(e)
        raise DataError(f"{shown(url)}: reading {protocol}:// needs another package. {install}.") from None
    except ValueError as e:
        raise DataError(f"{shown(url)}: {_line(e)}. http, https, s3, gs and what fsspec reads are known.") from None
    return system, path


def _fsspec_info(url: str) -> Info:
    with _reasons():
        system, path = _filesystem(url)
        system.invalidate_cache()
        found = system.info(path)
        if found.get("type") == "directory":
            raise _Missing("is a folder", False)
        version = next((str(found[name]) for name in VERSIONS if found.get(name)), "")
        return Info(found.get("size"), version)


def _fsspec_open(url: str, offset: int, known: Info) -> tuple[Stream, int]:
    _check_same(known, _fsspec_info(url) if known.version else known)
    with _reasons():
        system, path = _filesystem(url)
        stream: Stream = system.open(path, "rb", block_size=8 * BLOCK)
        if offset:
            stream.seek(offset)  # type: ignore[attr-defined]
        return stream, 0


# ---- programs
def program(url: str) -> list[str]:
    """The words of `pipe:COMMAND`.  Raises DataError."""
    try:
        words = shlex.split(url.removeprefix(PIPE))
    except ValueError as e:
        raise DataError(f"{url!r}: {_line(e)}.") from None
    if not words:
        raise DataError(f"{url!r}: names no program. Write for example pipe:aws s3 cp s3://bucket/x.tar -.")
    return words


class _Program:
    """What a program writes to its standard output; its end counts only with exit code 0."""

    def __init__(self, url: str) -> None:
        words = program(url)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the program runs
        try:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors)
        except OSError as e:
            raise Unreachable(f"{words[0]} cannot be started: {e.strerror}", False) from None
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.ready = selectors.DefaultSelector()
        self.ready.register(self.output, selectors.EVENT_READ)

    def read(self, n: int) -> bytes:
        if not self.ready.select(PIPE_SILENCE):
            raise Unreachable(f"no byte in {PIPE_SILENCE:.0f} s", True)
        data = os.read(self.output.fileno(), n)
        if not data and (code := self.process.wait(PIPE_SILENCE)):
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip().splitlines()
            raise Unreachable(f"ended with exit code {code}" + (f": {said[-1].rstrip('.')}" if said else ""), True)
        return data

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.ready.close()
        self.output.close()
        self.errors.close()
