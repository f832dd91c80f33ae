"""What every protocol shares: the byte stream, what is known of a file, and the faults that are worth another try."""
from __future__ import annotations

import http.client
import re
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from twinview.errors import DataError

BLOCK = 1 << 20  # bytes read at once
SILENCE = 20.0  # seconds without a byte after which a server is given up
PASSING = (408, 425, 429)  # answers of http that may be another one later; so may all from 500 on
PIPE = "pipe:"
LEFT_OUT = "?(left out)"  # in place of a query
QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"\],]+)\?(?!\(left out\))[^\s'\"\],]+")
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


class ByteStream(Protocol):
    """Bytes that come once."""

    def read(self, n: int, /) -> bytes:
        """At most n bytes; none at the end."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def shown(url: str) -> str:
    """A URL as messages name it: without a query, which may hold a signature; also within the words of a `pipe:`."""
    return QUERY.sub(r"\1", url) if url.startswith(PIPE) else url.partition("?")[0]


def without_queries(value: Any) -> Any:
    """Text, or tables and lists of it, as files of a run hold it: with the queries of URLs, which may be signatures, as `LEFT_OUT`."""
    if isinstance(value, str):
        return QUERY.sub(rf"\1{LEFT_OUT}", value)
    if isinstance(value, Mapping):
        return {key: without_queries(inner) for key, inner in value.items()}
    return [without_queries(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def on_path(url: str, change: Callable[[str], str]) -> str:
    """The URL with another path; its query stays."""
    path, mark, query = url.partition("?")
    return f"{change(path)}{mark}{query}"


def base_name(url: str) -> str:
    """The last part of a URL's path."""
    return url.partition("?")[0].rpartition("/")[2]


class Missing(Unreachable):
    """There is no such file."""


def changed(known: Info, found: Info) -> bool:
    """Whether a file is another one now, by what is known of both."""
    return any(was and now and was != now for was, now in zip(known, found))


def check_same(known: Info, found: Info) -> None:
    """Raises Unreachable where the file has changed since it was opened."""
    if changed(known, found):
        raise Unreachable("has changed there since it was opened. Leave shards alone while they are read, and start again", False)


@contextmanager
def client_faults() -> Iterator[None]:
    """Whatever a client raises becomes Unreachable, with one line."""
    try:
        yield
    except (Unreachable, DataError):
        raise
    except urllib.error.HTTPError as e:
        kind = Missing if e.code in (404, 410) else Unreachable
        e.close()
        raise kind(f"the server answers {e.code} {e.reason}".rstrip(), e.code in PASSING or e.code >= 500) from None
    except (FileNotFoundError, IsADirectoryError):
        raise Missing("there is no such file", False) from None
    except PermissionError as e:
        raise Unreachable(f"may not be read ({one_line(e)})", False) from None
    except (http.client.InvalidURL, UnicodeError) as e:
        raise Unreachable(f"is no URL: {one_line(e)}. Write other characters as %20, and hosts in ASCII", False) from None
    except Exception as e:  # clients of object stores have exceptions of their own
        reason = e.reason if isinstance(e, urllib.error.URLError) else e
        what = f"no byte in {SILENCE:.0f} s" if isinstance(reason, TimeoutError) else one_line(reason)
        raise Unreachable(f"cannot be reached: {what}", True) from None


def one_line(e: object) -> str:
    """An exception's text on one line, without a full stop."""
    text = getattr(e, "strerror", None) or " ".join(str(e).split())
    return (text or type(e).__name__).rstrip(".")
