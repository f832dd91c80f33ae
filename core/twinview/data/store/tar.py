"""The members of an uncompressed tar by header: names and offsets, no bytes copied.  A tar that is damaged is refused, never cut short.

`tarfile` takes a broken header for the end of the archive, which loses samples without a word.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from twinview.errors import DataError

BLOCK = 512
PADDING = 1 << 20  # bytes behind the end of an archive that are read at once; all have to be zero
ZEROS = 1 << 26  # of these that are read in all: more is no padding
EXTENDED = 1 << 20  # most bytes of what a header says besides, such as a long name
FILES, LINKS = b"07\0", b"12"

Read = Callable[[int, int], bytes]


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str
    header: int  # offset of its header
    offset: int  # of its bytes
    size: int


def members(read: Read, length: int | None, path: str) -> Iterator[Member]:
    """The regular files of a tar of `length` bytes (None: not known before it ends), in order.

    `read(n, offset)` gives n bytes, fewer at the end; offsets only grow, so that it may read a stream.  Raises DataError with `path`, the offset
    and what is wrong: a broken header, missing bytes, no end-of-archive mark, data after it, a link.
    """
    at = 0
    longer: dict[str, str] = {}  # what a header before a member says about it
    while True:
        block = read(BLOCK, at)
        if len(block) < BLOCK:
            raise DataError(f"{path}, offset {at}: {_short(at, at + len(block))}")
        if not block.strip(b"\0"):
            return _check_end(read, at, length, path)
        try:
            name, size, kind = _header(block)
            size = _size(longer.get("size", size))
        except ValueError:
            raise DataError(f"{path}, offset {at}: {_broken(at, block)}") from None
        data, after = at + BLOCK, at + BLOCK + -(-size // BLOCK) * BLOCK
        if length is not None and data + size > length:
            raise DataError(f"{path}, offset {at}: {name!r} has {size} bytes, the file ends after {length - data}. It is cut off: copy it anew.")
        if kind in b"LKxg" and size > EXTENDED:
            raise DataError(f"{path}, offset {at}: an extended header of {size} bytes is no header. Copy the shard anew.")
        if kind == b"L":
            longer["path"] = _text(read(size, data).split(b"\0", 1)[0])
        elif kind == b"x":
            try:
                longer.update(_pax(read(size, data)))
            except (ValueError, IndexError):
                raise DataError(f"{path}, offset {data}: is no extended header. Copy the shard anew.") from None
        elif kind not in b"gK":  # a global header, a long link name: nothing here reads them
            name = longer.get("path", name)
            if kind in LINKS or kind == b"S" or any(k.startswith("GNU.sparse") for k in longer):
                what = "a sparse file" if kind not in LINKS else "a link"
                raise DataError(f"{path}, offset {at}: {name!r} is {what}, not a plain file. Pack with `tar --dereference` and without --sparse.")
            if kind in FILES:
                yield Member(name, at, data, size)
            longer = {}
        at = after


def _header(block: bytes) -> tuple[str, int, bytes]:
    """Name, size and type of a header.  Raises ValueError where the checksum or a number is wrong."""
    if int(block[148:156].strip(b" \0") or b"x", 8) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise ValueError
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:  # POSIX; GNU's magic is `ustar  ` and it has no prefix
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    field = block[124:136]
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b" \0") or b"0", 8)
    return _text(name), _size(size), block[156:157]


def _size(value: int | str) -> int:
    size = int(value)
    if size < 0:
        raise ValueError
    return size


def _pax(data: bytes) -> dict[str, str]:
    """Records `length key=value\\n` of an extended header (POSIX.1-2001).  Raises ValueError, IndexError."""
    found = {}
    while data.strip(b"\0"):
        length = int(data.split(b" ", 1)[0])
        if length <= 0:
            raise ValueError
        key, _, value = data[:length].split(b" ", 1)[1].partition(b"=")
        found[_text(key)] = _text(value[:-1])
        data = data[length:]
    return found


def _check_end(read: Read, at: int, length: int | None, path: str) -> None:
    """The rest of a file behind the first zero block has to be zero, as it is behind archives that were padded or read from a tape."""
    place = at + BLOCK
    while behind := read(PADDING, place):
        if behind.strip(b"\0"):
            more = place + len(behind) - len(behind.lstrip(b"\0"))
            raise DataError(f"{path}, offset {at}: the archive ends here, and data follows at {more}: a hole, or tars joined. Copy or pack it anew.")
        place += len(behind)
        if place - at > ZEROS:
            raise DataError(f"{path}, offset {at}: more than {ZEROS} zero bytes follow the end of the archive: a hole. Copy or pack it anew.")
    if place - at < 2 * BLOCK:
        raise DataError(f"{path}, offset {at}: {_short(at, place)}")


def _short(at: int, length: int) -> str:
    if length == 0:
        return "the file is empty."
    return f"the file ends without the mark that ends a tar ({length - at} bytes left). It is cut off: copy it anew."


def _broken(at: int, block: bytes) -> str:
    if at == 0 and block[:2] == b"\x1f\x8b":
        return "is compressed. Its samples are read by offset: unpack it with gunzip."
    return f"is {'no tar' if at == 0 else 'no header'}; it begins with {block[:16]!r}. Copy the shard anew."


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
