"""Shards that lie elsewhere: named by URL, or written by a program (`pipe:COMMAND`), and read by offset out of a cache on this machine."""
from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import attrs

from twinview.data.remote.base import BLOCK, LEFT_OUT, PIPE, Info, on_path, shown
from twinview.data.remote.cache import TIME, Cache, entry
from twinview.data.remote.pipe import program
from twinview.data.remote.transport import ResumableReader, info, listing, small
from twinview.data.store import index, manifest
from twinview.data.store.regular import SMALL_BYTES, read_regular
from twinview.data.threads import in_threads
from twinview.errors import DataError, closest
from twinview.files import write_text
from twinview.recipe.tables import Data

A = TypeVar("A")
B = TypeVar("B")

CHECKED = ".checked"  # beside a cached shard: the file that was found to have its manifest's checksum
WINDOWS = 3  # that a cache has to hold


@attrs.frozen
class Access:
    """Where fetched shards are kept, which programs a `pipe:` may run, and what was found so far."""

    cache: Cache = attrs.field(factory=Cache.at)
    programs: tuple[str, ...] = ()
    found: dict[str, list[RemoteShard]] = attrs.field(factory=dict)  # by what a recipe names; several ranks take what the first one found

    @classmethod
    def of(cls, data: Data) -> Access:
        """As a recipe says."""
        return cls(Cache.at(data.cache, data.cache_gb), tuple(data.allow_pipes))


@attrs.frozen(kw_only=True)
class RemoteShard:
    """A shard that lies elsewhere, as it is there now.  It is fetched when first opened, and again where it was evicted meanwhile."""

    url: str
    known: Info
    cache: Cache
    samples: int | None = None  # as a manifest says, and its
    sha256: str = ""
    content: str = ""  # checksum of the index that samples are read by; empty until there is one

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def name(self) -> str:
        """Its file in the cache."""
        return entry(self.url, self.sha256 or self.known.version, self.known.size)

    @property
    def path(self) -> Path:
        """Where it lies in the cache when it does."""
        return self.cache.folder / self.name

    def fetch(self, *, wait: bool = True) -> bool:
        """Have it in the cache; False where another process is fetching it, which `wait` waits for.  Raises DataError."""
        return self.cache.fetch(self.name, self.known.size, self._write, wait=wait)

    def open(self) -> int:
        """A descriptor of it.  Raises DataError."""
        while True:
            self.fetch()
            with suppress(FileNotFoundError):  # evicted since
                return self.cache.open(self.name)

    def _write(self, file: io.BufferedRandom) -> None:
        """Fetch it into `file`, check its bytes and its index, and leave the index beside it."""
        with closing(ResumableReader(self.url, self.known)) as reading:
            while data := reading.read(BLOCK):
                if self.cache.limit and file.tell() + len(data) > self.cache.limit:
                    raise DataError(f"{self}: is more than [data] cache_gb allows for all shards. Write more, or 0 for no limit.")
                file.write(data)
        file.flush()
        file.seek(0)
        if self.sha256 and hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
            raise DataError(f"{self}: has another sha256 than manifest.json says. Upload the folder anew.")
        self._note(os.fstat(file.fileno()))
        found = index.scan(Path(file.name), str(self))
        if self.content and checksum(found) != self.content:
            raise DataError(f"{self}: is not the shard that its index is of. Run `twinview shards index` where it lies, and upload both.")
        if self.samples not in (None, len(found)):
            raise DataError(f"{self}: has {len(found)} samples, and {self.samples} in manifest.json. Upload the folder anew.")
        _keep(self, found)

    def opened(self, rebuild: bool) -> tuple[RemoteShard, index.Index]:
        """Itself and its index: out of the cache, from beside it where it lies, or of the shard, fetched for it.  Raises DataError."""
        self.check_kept()
        whole = self.path.exists() and not rebuild  # asked before its index is: that is written first
        found = None if rebuild else self._kept() or self._sent()
        if found is None:
            if rebuild and self.path.exists():
                self.cache.drop(self.name)
            if not whole:
                self.fetch()
            found = (None if whole else self._kept()) or _keep(self, index.scan(self.path, str(self)))  # used, also where it cannot be kept
        if self.samples not in (None, len(found)):
            raise DataError(f"{self}: its index has {len(found)} samples, and manifest.json {self.samples}. Upload the folder anew.")
        return attrs.evolve(self, content=checksum(found)), found

    def check_kept(self) -> None:
        """Drop the shard in the cache where it is cut, or no file of its own, or has another checksum than its manifest says.

        The checksum is looked at once: a note beside the file says that this file was found right.
        """
        try:
            there = os.lstat(self.path)
        except OSError:
            return
        if stat.S_ISREG(there.st_mode) and self.known.size in (None, there.st_size) and (not self.sha256 or self._noted(there) or self._sound(there)):
            return
        self.cache.drop(self.name)

    def _sound(self, there: os.stat_result) -> bool:
        """Whether the cached file has the manifest's checksum; noted where it does."""
        with self.path.open("rb") as file:
            sound = hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        if sound:
            self._note(there)
        return sound

    def _note(self, there: os.stat_result) -> None:
        """Note beside a file that it has the manifest's checksum."""
        if self.sha256:
            with suppress(OSError):
                write_text(self.path.with_name(self.name + CHECKED), self._stamp(there), mode=0o600)

    def _noted(self, there: os.stat_result) -> bool:
        try:
            return read_regular(self.path.with_name(self.name + CHECKED), SMALL_BYTES).decode() == self._stamp(there)
        except (OSError, ValueError):
            return False

    def _stamp(self, there: os.stat_result) -> str:
        """What is the same only for the same file, wherever its time of access is."""
        return f"{self.sha256} {there.st_size} {there.st_ino}\n"

    def _kept(self) -> index.Index | None:
        """The index in the cache."""
        try:
            found = index.parse(index.sidecar(self.path))
        except Exception:  # whatever is wrong with it, it can be had anew
            return None
        return found if found.stamp == (found.stamp.size if self.known.size is None else self.known.size, TIME) else None

    def _sent(self) -> index.Index | None:
        """The index that lies beside the shard, kept if it is one of a shard of this size; each fetch checks that it is this shard's."""
        if self.url.startswith(PIPE) or self.known.size is None:
            return None
        try:
            data = small(on_path(self.url, lambda path: path + index.SUFFIX))
            found = index.parse(data) if data else None
        except Exception:  # refused, or no index: the shard itself will say what is wrong
            return None
        if found is None or found.stamp.size != self.known.size:
            return None
        self.cache.make()
        return _keep(self, found)


def _keep(shard: RemoteShard, found: index.Index) -> index.Index:
    """Put an index beside a shard's place in the cache."""
    stamped = attrs.evolve(found, stamp=index.Stamp(found.stamp.size, TIME))
    with suppress(OSError):
        index.write(shard.path, stamped, 0o644)
    return stamped


def checksum(found: index.Index) -> str:
    """Of an index: names, places and sizes of all files."""
    digest = hashlib.blake2b(json.dumps(found.fields).encode(), digest_size=16)
    for array in found.content:
        digest.update(array.tobytes())
    return digest.hexdigest()


# ---- naming
def is_remote(spec: str) -> bool:
    """Whether a path is a URL or a `pipe:`."""
    return spec.startswith(PIPE) or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", spec) is not None


def remote_shards(spec: str, urls: Iterable[str], access: Access) -> list[RemoteShard]:
    """The shards that the URLs or programs of `spec` name: .tar files, `*` where the protocol lists, folders with a manifest.json.

    Asks the servers what each is now.  Raises DataError with the first that is not there, or may not be run.
    """
    if spec not in access.found:
        access.cache.sweep()
        named = [shard for url in urls for shard in _named(url, access)]
        access.found[spec] = in_threads(_asked, named, "open")
    return access.found[spec]


def _named(url: str, access: Access) -> list[RemoteShard]:
    if LEFT_OUT in url:
        again = "Write the whole URL again, as data.shards=..."
        raise DataError(f"{shown(url)}: what stands behind the ? of a URL may be a signature, and is not kept in a run's folder. {again}.")
    if url.startswith(PIPE):
        _check_program(url, access.programs)
        return [RemoteShard(url=url, known=Info(None, ""), cache=access.cache)]
    try:
        urlsplit(url)
    except ValueError as e:
        raise DataError(f"{shown(url)}: {e}.") from None
    if urlsplit(url).password is not None:
        raise DataError(f"{urlsplit(url).scheme}://…@{urlsplit(url).hostname}: a password in a URL ends up in logs. Write it into ~/.netrc.")
    if "*" in url:
        found = listing(url)
        if not found:
            why = "http lists nothing: write the shards with {000..063}" if found is None else "names nothing that is there"
            raise DataError(f"{shown(url)}: {why}.")
        return [RemoteShard(url=one, known=Info(None, ""), cache=access.cache) for one in found]
    if url.partition("?")[0].endswith(".tar"):
        return [RemoteShard(url=url, known=Info(None, ""), cache=access.cache)]
    return _folder(url, access)


def _folder(url: str, access: Access) -> list[RemoteShard]:
    def within(name: str) -> str:
        return on_path(url, lambda path: f"{path.rstrip('/')}/{name}")

    data = small(within(manifest.NAME))
    if data is None:
        raise DataError(f"{shown(url)}: is no .tar, and there is no manifest.json in it. Write the shards with {{000..063}}.")
    said = manifest.parse(data)
    if said is None or any(shard.bytes is None or shard.images is None or not shard.sha256 for shard in said.shards.values()):
        raise DataError(f"{shown(url)}: its manifest.json is none of `twinview shards pack`. Write the shards with {{000..063}}.")
    return [
        RemoteShard(url=within(shard.name), known=Info(shard.bytes, ""), cache=access.cache, samples=shard.images, sha256=shard.sha256)
        for shard in said.shards.values()
    ]


def _check_program(url: str, programs: Sequence[str]) -> None:
    name = program(url)[0]
    if not programs:
        allowed = f"[{json.dumps(name)}]"
        raise DataError(f"{url!r}: runs a program. Allow it in a recipe of your own: [data] allow_pipes = {allowed}, or data.allow_pipes={allowed}.")
    if name not in programs:
        raise DataError(f"{url!r}: [data] allow_pipes does not name {name!r}.{closest(name, programs)}")


def _asked(shard: RemoteShard) -> RemoteShard:
    """As it is now; a shard that a manifest vouches for is not asked for where the cache has it."""
    if shard.url.startswith(PIPE) or (shard.sha256 and shard.path.exists()):
        return shard
    found = info(shard.url)
    if not shard.sha256:
        return attrs.evolve(shard, known=found)
    if found.size not in (None, shard.known.size):
        raise DataError(f"{shard}: has {found.size} bytes, and {shard.known.size} in manifest.json. Upload the folder anew.")
    return shard


def remote_of(shards: Iterable[object]) -> list[RemoteShard]:
    """Those of these shards that lie elsewhere."""
    return [shard for shard in shards if isinstance(shard, RemoteShard)]


def fetch_all(shards: Iterable[object]) -> None:
    """Have every remote shard among these in the cache.  Raises DataError."""
    missing = [shard for shard in remote_of(shards) if not shard.path.exists()]
    in_threads(RemoteShard.fetch, missing, "fetch")


def check_room(shards: Iterable[object], window: int) -> None:
    """Refuse a limited cache that cannot hold three windows: one that slower workers still read, one read, one fetched.  Raises DataError."""
    remote = remote_of(shards)
    sizes = sorted((shard.known.size or 0 for shard in remote), reverse=True)
    wanted = sum(sizes[: WINDOWS * window or None])
    limit = max((shard.cache.limit for shard in remote), default=0)
    if 0 < limit < wanted:
        together = f"three windows of {window} shards" if window else f"all {len(sizes)} shards, which window = 0 reads together"
        smaller = f" Or write window = {w}." if (w := sum(sum(sizes[: WINDOWS * n]) <= limit for n in range(1, len(sizes)))) else ""
        needs = f"{limit / 1e9:g} GB hold less than {together}: {wanted / 1e9:.3g} GB"
        raise DataError(f"[data] cache_gb: {needs}. Write more, or 0 for no limit.{smaller}")
