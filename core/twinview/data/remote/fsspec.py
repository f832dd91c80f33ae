"""Object stores and whatever else fsspec reads."""
from __future__ import annotations

from typing import Any

from twinview.data.remote.base import BLOCK, VERSIONS, ByteStream, Info, Missing, check_same, client_faults, one_line, shown
from twinview.errors import DataError

PACKAGES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> extra of twinview that installs what fsspec wants


def filesystem(url: str) -> tuple[Any, str]:
    """Raises DataError where the protocol, or the package that speaks it, is missing."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as e:
        extra = PACKAGES.get(protocol)
        install = f"Install it: pip install 'twinview[{extra}]'" if extra else one_line(e)
        raise DataError(f"{shown(url)}: reading {protocol}:// needs another package. {install}.") from None
    except ValueError as e:
        raise DataError(f"{shown(url)}: {one_line(e)}. http, https, s3, gs and what fsspec reads are known.") from None
    return system, path


def fsspec_info(url: str) -> Info:
    """Size and version of a file.  Raises Unreachable."""
    with client_faults():
        system, path = filesystem(url)
        system.invalidate_cache()
        found = system.info(path)
        if found.get("type") == "directory":
            raise Missing("is a folder", False)
        version = next((str(found[name]) for name in VERSIONS if found.get(name)), "")
        return Info(found.get("size"), version)


def fsspec_open(url: str, offset: int, known: Info) -> tuple[ByteStream, int]:
    """A stream that begins at `offset`, and 0: nothing is left to skip.  Raises Unreachable."""
    check_same(known, fsspec_info(url) if known.version else known)
    with client_faults():
        system, path = filesystem(url)
        stream: ByteStream = system.open(path, "rb", block_size=8 * BLOCK)
        if offset:
            stream.seek(offset)  # type: ignore[attr-defined]
        return stream, 0
