"""Files that are what they seem: regular ones of a bounded size.  A FIFO would be waited on for ever, a device has no end."""
from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

SAMPLE_BYTES = 1 << 30  # most bytes of one file of a sample: more than any image has that is decoded
SMALL_BYTES = 1 << 28  # most bytes of a manifest or of an index that is sent
OTHERS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFDIR: "a folder"}


def open_regular(path: Path) -> int:
    """A descriptor to read a file by, close-on-exec.  Raises ValueError for what is no regular file, OSError for what cannot be opened."""
    _check(os.stat(path).st_mode)  # before it is opened: a device may do something then, a FIFO waits
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check(os.fstat(file).st_mode)  # and what was opened, should it have been put in its place meanwhile
    except ValueError:
        os.close(file)
        raise
    return file


def read_regular(path: Path, most: int | None = SAMPLE_BYTES) -> bytes:
    """A whole file of at most so many bytes (None: any number).  Raises ValueError, OSError."""
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        if most is not None:
            check_size(os.fstat(file.fileno()).st_size, most)
        return file.readall()


def check_size(size: int, most: int = SAMPLE_BYTES) -> None:
    """Raises ValueError for more bytes than `most`, before any memory is taken."""
    if size > most:
        raise ValueError(f"has {size} bytes; at most {most} are read")


def check_stored(file: Path | BinaryIO) -> list[zipfile.ZipInfo]:
    """The members of a .npz.  Raises ValueError where they promise more bytes than the file holds: `numpy.savez` compresses nothing."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError("is packed otherwise than indexes are")
        return archive.infolist()


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError(f"is {OTHERS.get(stat.S_IFMT(mode), 'no file')}, and not a regular file")
