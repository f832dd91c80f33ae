"""Parts of a packing, or of a check, that machines made each by itself, become one: what a single process would have made."""
from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twinview.data.dataset.open import shard_paths
from twinview.data.dataset.shards import twin_samples
from twinview.data.store import index
from twinview.data.threads import in_threads
from twinview.data.writing.parts import Part, folder_of, missing
from twinview.data.writing.writer import PART, Summary, read_part, summary_of, write_manifest
from twinview.errors import DataError


def join_shards(out: Path) -> Summary:
    """Make OUT of the parts that `pack` left beside it: shards are renamed, not copied, and manifest.json is that of one packing.

    A kill costs nothing: the same call goes on.  Raises DataError: parts that are missing, or packed with other options; keys of two parts.
    """
    folder = folder_of(out)
    joining = folder.with_name(f".{out.resolve().name}.joining")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there already. Name a new folder, or remove this one.")
    parts = _parts(out, folder)
    said = next(iter(parts.values()))
    places = [(place, shard) for place, one in parts.items() for shard in one["shards"]]
    if not places:
        raise DataError(f"{out}: the source holds no samples.")
    shards = [{**shard, "name": f"{said['job']['name']}-{number:06}.tar"} for number, (_, shard) in enumerate(places)]
    there = [_at(joining / shard["name"], place / old["name"]) for shard, (place, old) in zip(shards, places)]
    for key, one, other in twin_samples([index.load(path).hashes.copy() for path in there], lambda shard, i: index.load(there[shard]).key(i)):
        raise DataError(f"{there[one]} and {there[other]}: both have a sample {key!r}. Pack all parts of the same source anew.")
    try:
        joining.mkdir(exist_ok=True)
        for path, shard in zip(there, shards):
            for moved in (index.sidecar(path), path):  # the shard last: it says that both have gone
                if path.parent != joining and moved.exists():
                    os.rename(moved, joining / (shard["name"] + moved.name.removeprefix(path.name)))
        write_manifest(joining, said["metadata"], shards)
        joining.rename(out)
    except OSError as e:
        raise DataError(f"{out}: cannot be written: {e.strerror}.") from None
    shutil.rmtree(folder)
    return summary_of(out, shards)


def index_part(spec: Sequence[str], part: Part) -> tuple[int, int, set[str]]:
    """Build the indexes beside a part of some shards: how many these are, their samples and their fields.  Raises DataError."""
    def one(path: Path) -> tuple[int, tuple[str, ...]]:
        found = index.build(path)
        return len(found), found.fields

    paths = list[Path]()
    for path in part.of([path for one in spec for path in shard_paths(one)]):
        if not isinstance(path, Path) or path.is_dir():
            raise DataError(f"--part: {path} is no shard on this machine's disks, and only of these indexes are built in parts. Leave --part out.")
        paths.append(path)
    found = in_threads(one, paths, "index")
    return len(paths), sum(count for count, _ in found), {field for _, fields in found for field in fields}


def _at(new: Path, old: Path) -> Path:
    """Where a shard lies: still in its part, or where a join that was killed has brought it."""
    return new if new.exists() and not old.exists() else old


def _parts(out: Path, folder: Path) -> Mapping[Path, Mapping[str, Any]]:
    """What each part says of itself, in order, by its folder."""
    found = {place.parent: read_part(place) for place in sorted(folder.glob(f"*/{PART}"))}
    if not found:
        raise DataError(f"{out}: there are no parts of it. Pack them with --part 1/N to N/N, and join them where they lie.")
    jobs = [{name: value for name, value in one["job"].items() if name != "part"} for one in found.values()]
    parts = [Part.read(one["job"]["part"]) for one in found.values()]
    if any(job != jobs[0] for job in jobs) or len({part.parts for part in parts}) > 1:
        raise DataError(f"{folder}: holds parts of several packings. Remove those that do not belong together.")
    if lacking := missing(parts):
        raise DataError(f"{out}: its parts {lacking} are not packed yet. Join when all are there.")
    return found
