"""Files that are whole or not there."""
from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def write_atomic(path: Path, *, mode: int = 0o666, sync: bool = False) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends; where the block raises, what was there stays as it was.

    `mode`: permissions, less those that the process's umask takes away; `sync`: wait until its bytes are on disk.  Links at `path` are replaced,
    not followed.  Raises OSError.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # several processes may write one file: each its own, and the last one stays
    with suppress(FileNotFoundError):
        fresh.unlink()
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        with suppress(FileNotFoundError):
            fresh.unlink()
        raise


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """A path of the same suffix beside `path`, to write to and read again; it takes its place when the block ends, and is gone where that raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def files_for(folder: Path) -> Iterator[Path]:
    """A folder to write files to and read them again; they go to `folder` when the block ends, and nowhere where it raises.  Raises OSError."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{os.getpid()}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        yield fresh
        for file in sorted(fresh.iterdir()):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if made:
            with suppress(OSError):  # it holds what was written
                folder.rmdir()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock at `path`, which is made where it is missing; the kernel takes it back from the dead.  Raises OSError."""
    with open(path, "ab") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_text(path: Path, text: str, *, mode: int = 0o666, sync: bool = False) -> None:
    """Write a small text file, whole or not at all; see `write_atomic`.  Raises OSError."""
    with write_atomic(path, mode=mode, sync=sync) as file:
        file.write(text.encode("utf-8"))
