"""One run in a folder at a time: a lock that ends with the process that holds it.

`RUN/.lock` is locked by the process of rank 0 (a POSIX lock: data workers do not inherit it, and the system releases it however the process ends)
and says who that is.  On file systems that carry locks to other machines (NFS 4, NFS 3 with lockd, Lustre with `flock`, Ceph, GPFS, SMB) the lock
alone decides.  Elsewhere (NFS mounted with `nolock`, FUSE, folders that a virtual machine shares, and where locks are refused altogether) it does not
reach another machine: there the holder touches the file every BEAT seconds, and a file that another machine has left without a goodbye is watched for
SILENT seconds first; one that is not touched meanwhile belongs to a dead process.
"""
from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinview.errors import CheckpointError

NAME = ".lock"
BEAT = 10.0  # seconds between two touches of the file
SILENT = 25.0  # seconds without a touch after which a holder on another machine counts as dead
PATIENCE = 5.0  # seconds in which a lock is asked for again: a process that was killed may take a moment to go
REFUSED = (errno.EACCES, errno.EAGAIN)
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[str] = set()  # folders of this process: it could take its own lock again, and closing a second descriptor would release the first


@contextlib.contextmanager
def locked(folder: Path, command: str = "") -> Iterator[None]:
    """Hold the lock of a run's folder.  Raises CheckpointError with who holds it, where it is held."""
    key = os.path.realpath(folder)
    if key in _held:
        raise CheckpointError(f"{folder}: this process trains in it already. Wait for that run to end, or give this one another folder.")
    path = folder / NAME
    before = _read(path)
    if before and before.get("host") != socket.gethostname() and not locks_reach(folder):
        _watch(folder, path, before)
    descriptor = _open(folder, path)
    ended = threading.Event()
    try:
        _lock(folder, descriptor)
        said = {"host": socket.gethostname(), "process": os.getpid(), "since": _now(), "command": command}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(said) + "\n").encode(), 0)
        _held.add(key)
        threading.Thread(target=_beat, args=(descriptor, ended), daemon=True, name="lock of the run's folder").start()
        yield
    finally:
        ended.set()
        if key in _held:
            _held.discard(key)
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)  # a goodbye
        os.close(descriptor)


def _open(folder: Path, path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise CheckpointError(f"{folder}: cannot be written to: {e.strerror}. Name another folder with run=DIR.") from None


def _lock(folder: Path, descriptor: int) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as e:
            if e.errno in WITHOUT_LOCKS:
                return  # the touches alone tell
            if e.errno not in REFUSED:
                raise CheckpointError(f"{folder / NAME}: cannot be locked: {e.strerror}. Name another folder with run=DIR.") from None
            if time.monotonic() > until:
                raise refusal(folder, _parse(os.pread(descriptor, 1 << 16, 0))) from None
        time.sleep(0.1)


def refusal(folder: Path, holder: dict[str, Any]) -> CheckpointError:
    """What is said of a folder that another run is at work in."""
    who = "process {process} on {host} since {since}".format(**{"process": "?", "host": "?", "since": "?", **holder}) if holder else "another process"
    return CheckpointError(f"{folder}: a run is at work in it: {who}. Wait until it has ended, or name another folder with run=DIR.")


def _watch(folder: Path, path: Path, holder: dict[str, Any]) -> None:
    """See whether a process on another machine still touches the file.  Raises CheckpointError where it does."""
    first, until = _touched(path), time.monotonic() + SILENT
    while time.monotonic() < until:
        time.sleep(min(1.0, SILENT / 5))
        if _touched(path) != first:
            raise refusal(folder, holder)
        if not _read(path):  # it has said goodbye
            return


def _touched(path: Path) -> int:
    """When the file was touched, by its server's clock.  Opened for it: NFS asks its server then."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_bytes())
    except OSError:
        return {}


def _parse(data: bytes) -> dict[str, Any]:
    """Who holds the lock; nothing where nobody does, or a kill came in the middle of the writing."""
    try:
        found = json.loads(data)
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


# ---- file systems
def locks_reach(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a lock in `folder` is seen by every machine that sees the folder.  `mounts`: the system's list of what is mounted where."""
    kind, options = _mounted(os.path.realpath(folder), mounts)
    if kind.startswith("fuse") or kind in ("9p", "virtiofs", "vboxsf", "beegfs", "prl_fs"):
        return False
    if kind in ("nfs", "nfs4"):
        return "nolock" not in options and not {"local_lock=all", "local_lock=posix"} & options
    if kind == "lustre":
        return "flock" in options
    return not (kind in ("cifs", "smb3") and "nobrl" in options)


def _mounted(path: str, mounts: Path) -> tuple[str, set[str]]:
    """Kind and options of the file system that holds `path`; of systems that have no such list, nothing."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", set()
    found, longest = ("", set[str]()), -1
    for line in lines:
        head, _, tail = line.partition(" - ")
        at = head.split()[4].encode().decode("unicode_escape") if len(head.split()) > 4 else ""
        inside = path == at or path.startswith(at.rstrip("/") + "/")
        if at and inside and len(at) >= longest:  # of two mounted on one place the later one is on top
            kind, _, rest = tail.partition(" ")
            longest, found = len(at), (kind, set((head.split()[5] + "," + rest.rpartition(" ")[2]).split(",")))
    return found


# ---- looking without taking
def holder(folder: Path) -> dict[str, Any] | None:
    """The process that holds a folder's lock: what it said of itself; None where nobody does.  Takes no lock, not even for a moment."""
    path = folder / NAME
    if os.path.realpath(folder) in _held:  # another descriptor of this process must not be closed: that would release the lock
        return {"host": socket.gethostname(), "process": os.getpid()}
    said = _read(path)
    if not said:
        return None
    if sys.platform == "linux" and (said.get("host") == socket.gethostname() or locks_reach(folder)):
        return said if _is_locked(path) else None
    return said if time.time() - _touched(path) / 1e9 < SILENT else None


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file (F_GETLK)."""
    try:
        with path.open("rb") as file:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind: int = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))[0]
            return kind != fcntl.F_UNLCK
    except OSError:
        return False
