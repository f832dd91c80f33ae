"""A folder of shards that came from elsewhere: each is fetched once, whole, whoever asks for it, and the least recently used are evicted.

    HASH-NAME.tar             a shard, under a hash of its URL and version; its time of access is its last use
    HASH-NAME.tar.index.npz   its index, which stays when the shard goes
    HASH-NAME.tar.part        one that is being fetched

Whoever fetches holds a lock on the partial file, and whoever reads a shared one on the shard: the kernel takes them back from the dead, so a partial
file without a lock is litter, and a shard without one may be evicted.
"""
from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

import attrs

from twinview.data.remote.base import base_name
from twinview.errors import DataError
from twinview.paths import cache as home
from twinview.paths import expand

TIME = 10**18  # ns: every cached shard's time of change, so that one that is fetched again equals the one before
PART = ".part"
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)  # of another user, or in a folder that cannot be written: used, and left as it is
AGAIN = 0.02  # seconds between two looks at what another process is fetching


@attrs.frozen
class Cache:
    """A folder, and how many bytes of shards it may hold (0: any number)."""

    folder: Path
    limit: int = 0

    @classmethod
    def at(cls, folder: str = "", gigabytes: float = 0.0) -> Cache:
        """As a recipe's `cache` and `cache_gb` say.  Raises DataError."""
        return cls(expand(folder, "[data] cache", DataError) if folder else home() / "shards", round(gigabytes * 1e9))

    def make(self) -> None:
        """Make the folder where there is none.  Raises DataError, also for one that anybody may write to: what lies there could be anybody's."""
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            mode = self.folder.stat().st_mode
        except OSError as e:
            raise self._fault(e) from None
        if mode & stat.S_IWOTH:
            cure = f"Name a folder within it with [data] cache, or run `chmod o-w {self.folder}`"
            raise DataError(f"{self.folder}: anybody may write to this folder, and shards are read from it. {cure}.")

    def fetch(self, name: str, size: int | None, write: Callable[[BufferedRandom], None], *, wait: bool = True) -> bool:
        """Have the shard `name` in the folder, where need be from `write`, which fills and checks its file; False where another process is at it.

        With `wait` that process is waited for.  Raises DataError.
        """
        final = self.folder / name
        if final.exists():  # in a folder that cannot be written, too
            return True
        self.make()
        try:
            while not final.exists():
                with _shared(self.folder / (name + PART)) as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        if not wait:
                            return False
                        time.sleep(AGAIN)  # poll instead of blocking: after the rename, readers' shared locks would block us
                        continue
                    try:
                        self._fill(file, final, size, write)
                    finally:
                        fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked meanwhile holds the same lock
        except OSError as e:
            raise self._fault(e) from None
        return True

    def _fill(self, file: BufferedRandom, final: Path, size: int | None, write: Callable[[BufferedRandom], None]) -> None:
        """Make the shard of its partial file; nothing where whoever held the lock before has done so, or given up and taken the file away."""
        part = Path(file.name)
        if not _is(part, file):
            return
        try:
            if not final.exists():
                file.truncate(0)
                if (size or 0) > shutil.disk_usage(self.folder).free:
                    raise OSError(errno.ENOSPC, f"{size} bytes are more than it has left")
                with self._alone():
                    self._make_room(size or 0)
                    file.truncate(size or 0)  # counts from now on, though nothing is written yet
                write(file)
                os.fsync(file.fileno())
                os.utime(part, ns=(time.time_ns(), TIME))
                os.rename(part, final)
                with self._alone():
                    self._make_room(0, kept=final)  # what was under way beside it could not be evicted
        finally:
            if _is(part, file):
                part.unlink()

    def open(self, name: str) -> int:
        """A descriptor of a shard, which is not evicted as long as it is open.  Raises FileNotFoundError; a link in its place is removed."""
        try:
            file = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as e:
            if e.errno != errno.ELOOP:
                raise
            self.drop(name)
            raise FileNotFoundError(name) from None
        fcntl.flock(file, fcntl.LOCK_SH)
        self.touch(name)
        return file

    def touch(self, name: str) -> bool:
        """Note that a shard is wanted; False where it is not there."""
        try:
            os.utime(self.folder / name, ns=(time.time_ns(), TIME), follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as e:
            if e.errno not in NOT_OURS:
                raise
        return True

    def drop(self, name: str) -> None:
        """Forget a shard.  Raises DataError."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as e:
            raise self._fault(e) from None

    def sweep(self) -> None:
        """Remove what fetches that were killed have left, and what is over the limit, where the folder can be written.  Raises DataError."""
        if not self.folder.is_dir():
            return
        self.make()
        try:
            with self._alone():
                for path in self.folder.glob("*" + PART):
                    _evict(path)
                self._make_room(0)
        except OSError as e:
            if e.errno not in NOT_OURS:
                raise self._fault(e) from None

    def _make_room(self, wanted: int, kept: Path | None = None) -> None:
        """Evict the longest unused shards until `wanted` bytes more are within the limit, or all that are left are `kept` or being read."""
        if not self.limit:
            return
        there = list[tuple[int, int, Path]]()
        for path in (*self.folder.glob("*.tar"), *self.folder.glob("*" + PART)):
            with suppress(FileNotFoundError):  # renamed, now that it is whole, or taken away
                found = path.stat()
                there.append((found.st_atime_ns, found.st_size, path))
        over = sum(size for _, size, _ in there) + wanted - self.limit
        for _, size, path in sorted(there):
            if over > 0 and path != kept and _evict(path):
                over -= size

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.folder / ".room", "r+b", opener=_own) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)

    def _fault(self, e: OSError) -> DataError:
        what = "is full" if e.errno in (errno.ENOSPC, errno.EDQUOT) else f"cannot be used: {e.strerror}"
        if e.errno == errno.ELOOP:
            return DataError(f"{e.filename}: is a link, where a file of the cache belongs. Links are not followed there: remove it.")
        return DataError(f"{self.folder}: {what}. Fetched shards are kept there: name another folder with [data] cache, or limit cache_gb.")


def entry(url: str, version: str, size: int | None) -> str:
    """The name of a shard in the folder: other URLs, and other versions of one, have other names."""
    place = hashlib.blake2b(f"{url}\0{version}\0{size}".encode(), digest_size=12).hexdigest()
    kept = "".join(c if c.isalnum() or c in "-_." else "_" for c in base_name(url).removesuffix(".tar"))[-80:]
    return f"{place}-{kept}.tar"


def _shared(path: Path) -> BufferedRandom:
    """A file to read and write, made where there is none, and left as it is where there is: another process may be at it."""
    return open(path, "r+b", opener=_own)


def _own(name: str, flags: int) -> int:
    """Opens a file of the cache, made where there is none; never what a link points to."""
    return os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _is(path: Path, file: BufferedRandom) -> bool:
    """Whether `path` is still the file that was opened under this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _evict(path: Path) -> bool:
    """Remove a shard or a partial file, unless it is being read or written."""
    with suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False
