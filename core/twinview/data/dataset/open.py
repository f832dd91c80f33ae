"""Open what a recipe's [data] names: shards by path, URL or folder, several sources as one set, or a stream."""
from __future__ import annotations

import difflib
import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.data.dataset.base import DataSource
from twinview.data.dataset.mixture import Mixture, Subset
from twinview.data.dataset.shards import ONCE, Shards, refuse_twins
from twinview.data.dataset.stream import Stream
from twinview.data.remote.anywhere import Shard, count
from twinview.data.remote.shard import Access, check_room, is_remote, remote_of, remote_shards
from twinview.data.scenes.shards import scenes
from twinview.data.store import image_folder as images
from twinview.data.store import index, manifest
from twinview.data.store.indexes import indexes_of, shared
from twinview.data.store.listing import folder as image_folder
from twinview.data.store.listing import passed_over
from twinview.data.threads import in_threads
from twinview.errors import DataError
from twinview.progress import progress
from twinview.recipe.tables import Amount, Data, Source
from twinview.seeds import seed_of, splitmix
from twinview.terminal import say


def open_shards(spec: str | Sequence[str], access: Access | None = None, *, rebuild: bool = False) -> Shards:
    """Open shards by path: `{000..063}`, `*` and folders are expanded, in order; `images:DIR` is a folder of images.

    `scenes:train` and `scenes:val` are the embedded scenes.  URLs and `pipe:` are read by way of a cache, as `access` says.  A shard without a
    fresh index gets one, with `rebuild` every shard.  Raises DataError with the shard that is missing, damaged or out of reach.
    """
    paths = [path for one in ([spec] if isinstance(spec, str) else spec) for path in shard_paths(one, access)]
    if not paths:
        raise DataError("[data] shards: names no shard. Write the paths of some .tar files.")
    tars = [path for path in paths if isinstance(path, Path) and not path.is_dir()]
    if len(tars) == len(paths):
        return Shards(tars, indexes_of(tars, lambda found: refuse_twins([Shards(tars, found)], ONCE), rebuild=rebuild))
    remote = remote_of(paths)
    fetched = dict(zip(remote, in_threads(lambda shard: shard.opened(rebuild), remote, "index")))
    if len(remote) == len(paths):
        shards, sent = zip(*(fetched[path] for path in remote))
        names, versions = [shard.name for shard in shards], [shard.content for shard in shards]
        return Shards(shards, shared(names, versions, sent, lambda found: refuse_twins([Shards(shards, found)], ONCE)))
    opened: dict[Shard, tuple[Shard, index.Index | images.Folder]] = {}
    opened |= fetched.items()
    local = [path for path in paths if isinstance(path, Path)]
    read = {path: None if rebuild else images.read(path) if path.is_dir() else index.read(path) for path in local}
    todo = [path for path, found in read.items() if found is None]
    built = {path: images.build(path) if path.is_dir() else index.build(path) for path in progress(todo, len(todo), "index", "shards")}
    opened |= {path: (path, built[path] if found is None else found) for path, found in read.items()}
    for folder, found in opened.values():
        if isinstance(found, images.Folder) and found.others and os.environ.get("RANK", "0") == "0":
            _say_once(f"images:{folder}: {len(found)} images; {passed_over(found.others)}")
    return Shards(*zip(*(opened[path] for path in paths)))


@lru_cache(maxsize=64)
def _say_once(text: str) -> None:
    say(text)


def shard_paths(spec: str, access: Access | None = None) -> Iterator[Shard]:
    """The shards that a path with braces or `*`, a folder, a URL or `scenes:SPLIT` names; of `images:DIR` the folder.  Raises DataError."""
    if spec.startswith("scenes:"):
        yield from _folder(scenes(spec.removeprefix("scenes:")))
        return
    if spec.startswith("images:"):
        for text in expand(spec.removeprefix("images:")):
            yield image_folder(Path(os.path.expanduser(text)), "of images")
        return
    if is_remote(spec):
        yield from remote_shards(spec, list(expand(spec)), access or Access())
        return
    for text in expand(spec):
        path = Path(os.path.expanduser(text))  # Path's own raises where there is no such user
        if path.is_dir():
            yield from _folder(path)
        elif path.is_file():
            yield path
        elif found := sorted(glob.glob(str(path))):
            yield from map(Path, found)
        else:
            raise DataError(f"{path}: there is no such shard.{_nearest(path)}")


def expand(spec: str) -> Iterator[str]:
    """`a-{000..063}.tar`, `{train,extra}.tar`: every path that braces stand for, in order, zero-padded as written."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", spec)
    if found is None:
        yield spec
        return
    first, last, words = found.groups()
    if words is None and int(first) > int(last):
        raise DataError(f"{spec!r}: {first}..{last} counts down. Write {{{last}..{first}}}.")
    width = len(first) if first and (first[0] == "0" or last[0] == "0") else 0
    for word in words.split(",") if words is not None else (f"{n:0{width}}" for n in range(int(first), int(last) + 1)):
        yield from expand(spec[: found.start()] + word + spec[found.end() :])


def _folder(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: holds no .tar. Of a folder of images write images:{folder}, or pack it: `twinview shards pack images`.")
    listed = list(manifest.beside(folder).shards)
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        listing = f"{len(missing)} of {len(listed)} shards of manifest.json are"
        raise DataError(f"{folder / missing[0]}: is missing ({listing}). Copy the folder anew.")
    return found


def _nearest(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" There is no folder {folder} either."
    names = [p.name for p in folder.iterdir() if p.suffix == ".tar" or p.is_dir()]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.0)
    return f" The nearest is {folder / near[0]}." if near else f" {folder} holds no .tar."

log = logging.getLogger(__name__)
PROMISES = (
    "[data] streaming: the order depends on ranks and workers, and is shuffled by shards and among %d samples of a worker; an epoch may leave "
    "samples out and have others twice; a resume reads again what its epoch had read."
)


def open_stream(data: Data, access: Access) -> Stream:
    """What a recipe with `streaming` trains with; says what that cannot promise.  Raises DataError."""
    specs = [data.shards] if isinstance(data.shards, str) else data.shards
    paths = tuple(path for spec in specs for path in shard_paths(spec, access))
    counts = [count(path) for path in paths]
    known = [samples for samples in counts if samples is not None]
    if len(known) < len(paths) and not data.samples:
        unknown = next(path for path, samples in zip(paths, counts) if samples is None)
        raise DataError(f"[data] streaming: how many samples {unknown} has is not known. Name a folder with its manifest.json, or write samples = N.")
    if len(known) == len(paths) and data.samples not in (0, sum(known)):
        raise DataError(f"[data] samples: {data.samples}, and the shards have {sum(known)} by their manifest or index. Leave samples out.")
    if os.environ.get("RANK", "0") == "0":
        log.warning(PROMISES, data.buffer)
    return Stream(paths=paths, counts=tuple(known) if len(known) == len(paths) else None, samples=data.samples or sum(known))


PIECE = 1 << 20  # hashes that are looked at at once
SUBSET, HELD_OUT = "subset", "held-out"  # purposes, each with an order of its own


def open_data(data: Data, access: Access | None = None) -> DataSource:
    """What a recipe trains with.  Raises DataError: shards at fault, keys that stand twice, subsets or held-out parts that are empty or too large."""
    access = access or Access.of(data)
    if data.streaming:
        return open_stream(data, access)
    if not data.source and not data.held_out:
        shards = open_shards(data.shards, access)
        check_room(shards.paths, data.window)
        return shards
    sources = data.source or [Source(shards=data.shards)]
    opened = [open_shards(source.shards, access) for source in sources]
    check_room([path for shards in opened for path in shards.paths], data.window * len(sources))
    if len(opened) > 1 and not sources[0].name:
        refuse_twins(opened, "Keys name samples: write a name = \"...\" into each [[data.source]], to stand before its keys.")
    hashes = [shards.hashes for shards in opened]
    ends = np.cumsum([len(shards) for shards in opened])
    every = [array for arrays in hashes for array in arrays]
    held = np.split(_chosen(every, data.held_out, HELD_OUT, "[data] held_out"), ends[:-1]) if data.held_out else None
    train, kept = list[Subset](), list[Subset]()
    for i, (source, shards) in enumerate(zip(sources, opened)):
        part = Subset(name=source.name, shards=shards, rows=range(len(shards)), weight=source.weight)
        rest = np.flatnonzero(~held[i]) if held else part.rows
        if not len(rest):
            raise DataError(f"[data] held_out: {data.held_out} leaves nothing of {part.label} to train with. Write less.")
        if source.subset != 1.0:
            left = hashes[i] if isinstance(rest, range) else [np.concatenate(hashes[i])[rest]]
            chosen = _chosen(left, source.subset, SUBSET, f"[[data.source]] {part.label}: subset")
            rest = np.flatnonzero(chosen) if isinstance(rest, range) else rest[chosen]
        train.append(attrs.evolve(part, rows=rest))
        kept += [attrs.evolve(part, rows=np.flatnonzero(held[i]), weight=None)] if held else []
    return Mixture(train, Mixture(kept) if held else None)


def _chosen(hashes: Sequence[NDArray[np.int64]], amount: Amount, purpose: str, place: str) -> NDArray[np.bool_]:
    """Choose samples by their hashes: for a share, those whose mixed hash lies in that share of all numbers; for a count, those with the smallest."""
    mix = np.uint64(seed_of(purpose))
    count = sum(map(len, hashes))
    if isinstance(amount, int) and amount > count:
        raise DataError(f"{place}: {amount} is more than the {count} samples that there are. Write {count} or less.")
    if isinstance(amount, int):
        found = np.zeros(count, np.bool_)
        found[np.argsort(np.concatenate([splitmix(one.view(np.uint64) ^ mix) for one in hashes]), kind="stable")[:amount]] = True
    else:
        pieces = [one[at : at + PIECE] for one in hashes for at in range(0, len(one), PIECE)]
        found = np.concatenate([splitmix(piece.view(np.uint64) ^ mix) < np.uint64(int(amount * 2**64)) for piece in pieces])
    if not found.any():
        raise DataError(f"{place}: {amount} of {count} samples is none. Write more.")
    return found
