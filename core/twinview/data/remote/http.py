"""http and https, by Python's own client."""
from __future__ import annotations

import http.client
import netrc
import os
import urllib.request
from base64 import b64encode
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from twinview.data.remote.base import SILENCE, VERSIONS, ByteStream, Info, Missing, Unreachable, check_same, client_faults
from twinview.version import __version__


def is_http(url: str) -> bool:
    """Whether a URL is of http or https."""
    return url.lower().startswith(("http://", "https://"))


def _request(url: str, method: str, offset: int = 0) -> Any:
    request = urllib.request.Request(url, method=method, headers={"User-Agent": f"twinview/{__version__}", "Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    if login := _login(urlsplit(url).hostname or ""):
        request.add_unredirected_header("Authorization", "Basic " + b64encode(login.encode()).decode())
    with client_faults():
        return urllib.request.urlopen(request, timeout=SILENCE)


def _login(host: str) -> str:
    """NAME:PASSWORD of ~/.netrc; empty where it has none."""
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return ""
    return f"{found[0]}:{found[2]}" if found else ""


def http_info(url: str) -> Info:
    """Size and version of a file.  Raises Unreachable."""
    try:
        answer = _request(url, "HEAD")
    except Missing:
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


def http_open(url: str, offset: int, known: Info) -> tuple[ByteStream, int]:
    """A stream, and how many bytes of it lie before the offset: servers may ignore a Range."""
    answer = _request(url, "GET", offset)
    begins = offset if answer.status == http.client.PARTIAL_CONTENT else 0
    said = _said(answer, begins)
    try:
        check_same(known, said)
    except Unreachable:
        answer.close()
        raise
    return _Answer(answer, said.size - begins if said.size is not None else None), offset - begins


class _Answer:
    """An HTTP body.  Raises Unreachable if the connection closes before Content-Length bytes, which Python's client takes for the end."""

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
