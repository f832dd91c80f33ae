"""Arrays out of a .npz as `numpy.savez` writes it, several times faster than `numpy.load`: a hundred thousand of them are opened at a start."""
from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twinview.data.store.regular import check_stored

LOCAL = 30  # bytes of a member's header in a zip, before its name
HEADER = re.compile(rb"\x93NUMPY\x01\x00..\{'descr': '([<|][iu][1248])', 'fortran_order': False, 'shape': \((\d+),\), \} *\n", re.DOTALL)
ENTRY = struct.Struct("<4s6xH4xLLLHHH8xL")  # of the list of members: mark, packing, checksum, bytes packed and not, lengths of texts, place
END = struct.Struct("<4s6xHLLH")  # behind it: mark, members, bytes of the list, its place, length of a remark
ELSEWHERE = 0xFFFFFFFF  # a number that is too large for its place


class Member(NamedTuple):
    """A file in a zip that is not packed."""

    name: str
    place: int  # of its header
    size: int
    checksum: int


def stored_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """The one-dimensional arrays of whole numbers in a file, by name, as parts of `data` itself.  Raises whatever is wrong with it."""
    found, whole = {}, memoryview(data)
    for name, place, size, checksum in _members(data):
        names = data[place + 26 : place + LOCAL]  # how long the name and what stands behind it are
        begin = place + LOCAL + int.from_bytes(names[:2], "little") + int.from_bytes(names[2:], "little")
        part = whole[begin : begin + size]
        if len(part) != size or zlib.crc32(part) != checksum:
            raise zipfile.BadZipFile(f"{name} is damaged")
        header = HEADER.match(part)
        if header is None:
            raise ValueError(f"{name} is packed otherwise than indexes are")
        array = np.frombuffer(part, _kind(header[1]), offset=header.end())
        if len(array) != int(header[2]):
            raise ValueError(f"{name} has {len(array)} numbers, and says {int(header[2])}")
        found[name.removesuffix(".npy")] = array
    return found


def _members(data: bytes) -> list[Member]:
    """Read by hand where the list is as `numpy.savez` writes it, which is the case; else by `zipfile`, which knows the others and what is wrong."""
    try:
        return list(_listed(data))
    except (ValueError, struct.error):
        return [Member(one.filename, one.header_offset, one.file_size, one.CRC) for one in check_stored(io.BytesIO(data))]


def _listed(data: bytes) -> Iterator[Member]:
    mark, count, length, at, remark = END.unpack_from(data, len(data) - END.size)
    if mark != b"PK\5\6" or remark or at + length != len(data) - END.size:
        raise ValueError("another end")
    for _ in range(count):
        mark, packing, checksum, packed, size, name, more, remark, place = ENTRY.unpack_from(data, at)
        if mark != b"PK\1\2" or packing or packed != size or ELSEWHERE in (size, place):
            raise ValueError("another entry")
        yield Member(data[at + ENTRY.size : at + ENTRY.size + name].decode("ascii"), place, size, checksum)
        at += ENTRY.size + name + more + remark


@lru_cache
def _kind(name: bytes) -> np.dtype[Any]:
    return np.dtype(name.decode())
