"""The folder that shards are written in until all are there: what is finished is noted, so that a kill costs no more than one shard."""
from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from twinview.errors import DataError

E = TypeVar("E", bound=tuple[str, Any])


class Packing:
    """Shards of one job on their way to OUT; they lie in `.OUT.packing/shards`, and a note of each finished one in `.OUT.packing/notes.jsonl`."""

    def __init__(self, out: Path, folder: Path, notes: TextIO, done: list[dict[str, Any]]) -> None:
        self.out, self.folder, self.notes, self.done = out, folder, notes, done

    @property
    def shards(self) -> Path:
        """Where the shards are written."""
        return self.folder / "shards"

    def note(self, shard: Mapping[str, Any]) -> None:
        """Keep what is known of a finished shard; it survives a kill."""
        self.notes.write(json.dumps(shard) + "\n")
        self.notes.flush()
        os.fsync(self.notes.fileno())
        self.done.append(dict(shard))

    def rest(self, entries: Iterable[E]) -> Iterator[E]:
        """The entries behind those of the finished shards.  Raises DataError where the source no longer begins with those."""
        found = iter(entries)
        for shard in self.done:
            keys = Keys()
            for _, entry in zip(range(shard["entries"]), found):
                keys.add(entry[0])
            if keys.text() != shard["keys"]:
                raise DataError(f"{self.folder}: what was packed there is not what the source holds now. Remove it to start anew.")
        yield from found


class Keys:
    """A checksum of keys in order."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self.count = 0

    def add(self, key: str) -> None:
        """One more."""
        self.count += 1
        self.digest.update(key.encode("utf-8", "surrogateescape") + b"\0")

    def text(self) -> str:
        """The checksum of all so far."""
        return self.digest.hexdigest()


@contextmanager
def packing(out: Path, job: Mapping[str, Any]) -> Iterator[Packing]:
    """The folder of a packing, new or as a kill has left it; its shards become OUT at the end.  `job`: what decides on the bytes.

    Raises DataError where OUT is there and not empty, cannot be written, is being packed, or was begun with another job.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there already. Name a new folder, or remove this one.")
    folder = out.absolute().parent / f".{out.resolve().name}.packing"
    try:
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        with (folder / "notes.jsonl").open("a+", encoding="utf-8") as notes:
            _lock(notes, out)
            work = Packing(out, folder, notes, _begun(notes, folder, json.loads(json.dumps(job))))
            try:
                yield work
                (folder / "shards").rename(out)
                shutil.rmtree(folder)
            except BaseException:
                if not work.done:
                    shutil.rmtree(folder)
                raise
    except OSError as e:
        raise DataError(f"{out}: cannot be written: {e.strerror}.") from None


def _lock(notes: TextIO, out: Path) -> None:
    try:
        fcntl.flock(notes, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"{out}: another process is packing it. Wait for that one, or name another folder.") from None


def _begun(notes: TextIO, folder: Path, job: Any) -> list[dict[str, Any]]:
    """The shards that are finished; a last line that a kill has cut is dropped."""
    notes.seek(0)
    lines = notes.read().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    if not found:
        notes.truncate(0)
        notes.write(json.dumps(job) + "\n")
        notes.flush()
        return []
    if found[0] != job:
        changed = ", ".join(name for name in {**found[0], **job} if found[0].get(name) != job.get(name))
        raise DataError(f"{folder}: holds the beginning of a packing with another {changed}. Write the same to go on, or remove it.")
    kept = list(itertools.takewhile(lambda shard: _whole(folder / "shards" / shard["name"], shard["bytes"]), found[1:]))
    notes.truncate(len("".join(lines[: len(kept) + 1]).encode()))  # shards that have gone to OUT, or were taken away, are written anew
    return kept


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
