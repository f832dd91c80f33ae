"""Other shards in WebDataset's layout (github.com/webdataset/webdataset, README): packed anew, all their fields or those chosen, in their order."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from twinview.data.dataset.open import shard_paths
from twinview.data.dataset.shards import Shards, refuse_twins
from twinview.data.prepare.layouts import Found
from twinview.data.remote.anywhere import Shard, local_copy
from twinview.data.store import index
from twinview.data.writing.entry import Entry
from twinview.errors import DataError, closest

DOTS = {"first": index.split, "last": index.split_at_last_dot}
KEYS = ("own", "shard")
AGAIN = "`--keys shard` puts the shard's name before them."


def find(source: str, fields: str | None = None, dots: str = "first", keys: str = "own") -> Found:
    """Every sample of the shards that `source` names, as `data.shards` of a recipe would.

    `fields`: those that are kept, and what they are called in the new shards: `jpg=left.jpg,seg.png=left_mask.png,json`.  `dots`: a key ends at the
    `first` dot of a name, as WebDataset has it, or at the `last`; dots within keys become `_`.  `keys`: `shard` puts the shard's name before each.
    """
    if dots not in DOTS:
        raise DataError(f"dots: wants the dot where a key ends.{closest(dots, DOTS)}")
    if keys not in KEYS:
        raise DataError(f"keys: wants what a key is.{closest(keys, KEYS)}")
    chosen = _chosen(fields) if fields is not None else None
    opened = [_opened(path, dots) for path in shard_paths(source)]
    if keys == "own":
        refuse_twins(opened, f"Keys name samples: list each shard once; where each shard counts its samples anew, {AGAIN}")
    there = {field for shards in opened for field in shards.fields}
    for field in (chosen or {}).values():
        if field not in there:
            raise DataError(f"fields: no sample has a file {field!r}.{closest(field, there)}")
    before = _names(opened) if keys == "shard" else [""] * len(opened)

    return Found(entries=_Entries(opened, before, chosen), total=sum(map(len, opened)))


class _Entries:
    """The samples of shards, in order."""

    def __init__(self, opened: list[Shards], before: list[str], chosen: Mapping[str, str] | None) -> None:
        """`before`: what stands before the keys of each shard; `chosen`: new names of fields, by which they are read."""
        self.opened, self.before, self.chosen = opened, before, chosen

    def __iter__(self) -> Iterator[Entry]:
        return self.between(0, sum(map(len, self.opened)))

    def between(self, begin: int, end: int) -> Iterator[Entry]:
        """Samples `begin` to `end`; nothing before or behind them is read.  Raises DataError where two of them have one key."""
        return _once(self._between(begin, end))

    def _between(self, begin: int, end: int) -> Iterator[Entry]:
        first = 0
        for shards, name in zip(self.opened, self.before):
            for i in range(max(0, begin - first), min(len(shards), end - first)):
                key, found = shards.read(i, set(self.chosen.values()) if self.chosen else None)
                named = {new: found[old] for new, old in self.chosen.items() if old in found} if self.chosen else found
                yield Entry(name + _plain(key), {**named})
            shards.close()
            first += len(shards)


def _chosen(text: str) -> Mapping[str, str]:
    """`jpg=left.jpg,json` -> {"jpg": "left.jpg", "json": "json"}."""
    found: dict[str, str] = {}
    for word in text.split(","):
        new, _, old = (part.strip().lower() for part in word.partition("="))
        if not re.fullmatch(r"[\w.-]+", new) or new in found:
            raise DataError(f"fields: wants names such as jpg=left.jpg,seg.png=mask.png,json, each new one once, not {text!r}.")
        found[new] = old or new
    return found


def _opened(shard: Shard, dots: str) -> Shards:
    path = local_copy(shard)
    if path.is_dir():
        raise DataError(f"images:{path} is a folder of images. Pack it with `images`.")
    kept = path is shard and dots == "first"
    return Shards([shard], [index.load(path) if kept else index.scan(path, str(shard), DOTS[dots])])


def _names(opened: list[Shards]) -> list[str]:
    """What stands before the keys of each shard: its name, behind its folder's where two have the same."""
    places = [str(shards.paths[0]).removesuffix(".tar").split("/") for shards in opened]
    count = Counter(place[-1] for place in places)
    return ["/".join(_plain(part) for part in (place[-1:] if count[place[-1]] == 1 else place[-2:])) + "/" for place in places]


def _plain(key: str) -> str:
    """A key whose last part has no dot: where it stands in a tar, a dot would end it."""
    folder, slash, base = key.rpartition("/")
    return folder + slash + base.replace(".", "_")


def _once(entries: Iterator[Entry]) -> Iterator[Entry]:
    """The same.  Raises DataError where two have one key, now that dots are gone and names stand before."""
    seen = set[str]()
    for entry in entries:
        if entry.key in seen:
            raise DataError(f"{entry.key!r}: two samples have this key. Keys name samples; {AGAIN}")
        seen.add(entry.key)
        yield entry
