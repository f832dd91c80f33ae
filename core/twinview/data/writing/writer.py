"""Write samples as tars in WebDataset's layout, with their indexes and a manifest.

The same input gives the same tars, byte for byte, in one go or in many.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import attrs

from twinview.data.formats.fields import map_field
from twinview.data.store import index
from twinview.data.store.listing import passed_over
from twinview.data.threads import in_order
from twinview.data.writing.entry import Content
from twinview.data.writing.parts import Part, between, folder_of
from twinview.data.writing.prepare_sample import BadEntry, Prepared, Recode, prepare
from twinview.data.writing.resume import Keys, packing
from twinview.data.writing.statistics import measured
from twinview.errors import DataError
from twinview.progress import progress
from twinview.terminal import say

SHARD_SIZE = 1000  # samples
MAX_BYTES = 1 << 30  # of a shard's files
PART = "part.json"  # in the folder of a part: what is known of its shards
MEASURED = 1000  # images that mean and deviation are measured over, about; evenly spaced

A = TypeVar("A")
B = TypeVar("B")


@attrs.frozen(kw_only=True)
class Summary:
    """What was written."""

    out: Path
    shards: int
    images: int
    labels: int  # label maps
    bytes: int  # of all shards
    seconds: float
    kept: int = 0  # images that an earlier try had packed
    left_out: int = 0  # samples that could not be packed
    passed_over: Mapping[str, int] = attrs.field(factory=dict)  # what was not packed, by kind: files by their suffix, hidden files and folders
    unmatched: Mapping[str, int] = attrs.field(factory=dict)  # what met no partner, by kind
    part: Part | None = None  # that this is of

    @property
    def images_per_second(self) -> float:
        """How fast it went."""
        return (self.images - self.kept) / max(self.seconds, 1e-9)

    def text(self) -> str:
        """One line for a person."""
        maps = f" with {self.labels} label maps" if self.labels else ""
        speed = f"{self.seconds:.1f} s, {self.images_per_second:.0f} images/s"
        said = [passed_over(self.passed_over), *(f"{count} {kind}" for kind, count in self.unmatched.items())]
        said += [f"{self.left_out} bad samples left out, named in manifest.json"] if self.left_out else []
        said += [f"part {self.part}: `twinview shards join` makes one folder of all parts"] if self.part else []
        others = "".join(f"; {one}" for one in said if one)
        return f"{self.out}: {self.images} images{maps} in {self.shards} shard{'s' * (self.shards != 1)}, {self.bytes / 1e6:.1f} MB ({speed}){others}"


@attrs.frozen(kw_only=True)
class Options:
    """How any data set is packed."""

    shard_size: int = SHARD_SIZE  # most samples of a shard; fewer where the set would fill less than eight
    max_bytes: int = MAX_BYTES  # most bytes of a shard's files
    recode: Recode = attrs.field(factory=Recode)
    workers: int = 1  # threads that read, check and encode
    bad_samples: int = 0  # that may be left out

    def __attrs_post_init__(self) -> None:
        """Raises DataError for what is no number of its kind."""
        numbers = {"shard-size": self.shard_size, "workers": self.workers, "shorter-side": self.recode.shorter_side, "quality": self.recode.quality}
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise DataError(f"--{name}: wants a number above 0, not {number}.")
        if self.bad_samples < 0:
            raise DataError(f"bad_samples: wants a number of at least 0, not {self.bad_samples}.")
        if (self.recode.quality or 0) > 100:
            raise DataError(f"quality: wants a JPEG's quality from 1 to 100, not {self.recode.quality}.")


def write_shards(
    entries: Iterable[tuple[str, Mapping[str, Content]]], out: Path, *, total: int, options: Options, name: str | None = None, what: str,
    metadata: Mapping[str, Any] | None = None, part: Part | None = None,
) -> Summary:
    """Write samples to OUT/NAME-000000.tar, ..., each with its index, and OUT/manifest.json; OUT appears when all is written.

    NAME is OUT's own unless given; `what` and `total` are for the progress bar, `metadata` goes to the manifest.  After a kill or an error the
    finished shards are kept, and the same call goes on behind them.  With `part` only that part's shards are written, beside OUT: `join` makes OUT of
    all.  Raises DataError: where OUT is there and not empty, or cannot be written; for a sample whose header is that of no image or label map.
    Pixels are decoded only where images are encoded anew: a picture that was cut short is packed as it is.
    """
    started = time.monotonic()
    name = re.sub(r"[^\w-]", "_", name or out.resolve().name)
    metadata, stride = dict(metadata or {}), -(-total // MEASURED)
    limits = {"shard_size": options.shard_size, "max_bytes": options.max_bytes, "measured": stride}
    job = {"name": name, **limits, **attrs.asdict(options.recode), **metadata}
    first, count, place = 0, total, out
    if part is not None:
        blocks = part.share(-(-total // options.shard_size))  # shards end where their entries do, in any part
        first, end = (min(total, block * options.shard_size) for block in (blocks.start, blocks.stop))
        entries, count = between(entries, first, end), end - first
        job, place = {**job, "part": str(part), "total": total}, _part_folder(out, part)
        if (place / PART).is_file():
            return _packed_already(place, job, part)
    with packing(place, job) as work:
        kept = sum(shard["images"] for shard in work.done)
        seen = sum(shard["entries"] for shard in work.done)
        if kept:
            say(f"{what}: goes on behind the {kept} images of {len(work.done)} finished shards")
        left = _Bad(options.bad_samples, sum(len(shard["left_out"]) for shard in work.done))

        def prepared(numbered: tuple[int, tuple[str, Mapping[str, Content]]]) -> tuple[str, Prepared | BadEntry]:
            at, entry = numbered
            return entry[0], prepare(entry, options.recode, at % stride == 0)

        ready = in_order(prepared, enumerate(work.rest(entries), first + seen), options.workers)
        shown = progress(left.passed(ready), count - seen, what, "images")
        for number, group in groupby(_numbered(shown, options, len(work.done), first + seen), key=lambda three: three[0]):
            work.note(_write(work.shards / f"{name}-{number:06}.tar", ((key, one) for _, key, one in group)))
        if part is None:
            if not work.done:
                raise DataError(f"{out}: the source holds no samples.")
            write_manifest(work.shards, metadata, work.done)
        else:
            said = {"job": job, "metadata": metadata, "shards": work.done}
            (work.shards / PART).write_text(json.dumps(said) + "\n", encoding="utf-8")
    return attrs.evolve(summary_of(place, work.done), seconds=time.monotonic() - started, kept=kept, part=part)


def _part_folder(out: Path, part: Part) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there already. Name a new folder, or remove this one.")
    return folder_of(out) / part.name


def _packed_already(place: Path, job: Mapping[str, Any], part: Part) -> Summary:
    """Of a part that an array of jobs asks for again.  Raises DataError where it was packed otherwise."""
    said = read_part(place / PART)
    if said["job"] != json.loads(json.dumps(job)):
        changed = ", ".join(name for name in {**said["job"], **job} if said["job"].get(name) != job.get(name))
        raise DataError(f"{place}: was packed with another {changed}. Remove {place.parent} to pack all parts anew.")
    if gone := [shard["name"] for shard in said["shards"] if not (place / shard["name"]).is_file()]:
        raise DataError(f"{place}: {gone[0]} is gone: was it joined? Remove {place.parent}, where OUT is whole, or pack all parts anew.")
    found = summary_of(place, said["shards"])
    return attrs.evolve(found, kept=found.images, part=part)


def read_part(path: Path) -> dict[str, Any]:
    """What a part says of itself.  Raises DataError for a file that is damaged."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(said, dict) and isinstance(said["job"], dict) and isinstance(said["shards"], list):
            return said
    except (OSError, ValueError, KeyError):
        pass
    raise DataError(f"{path}: is no part, or a damaged one. Remove its folder, and pack that part anew.")


def write_manifest(folder: Path, metadata: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]) -> None:
    """Write manifest.json of shards that are noted like this."""
    totals = {count: sum(shard[count] for shard in shards) for count in ("images", "labels", "bytes")}
    kinds = sum((Counter(shard["kinds"]) for shard in shards), Counter[str]())
    colors = measured(kinds, [one for shard in shards for one in shard["moments"]])
    manifest = {"format": 1, **totals, **metadata, **colors, "left_out": [one for shard in shards for one in shard["left_out"]]}
    manifest["shards"] = [{what: shard[what] for what in ("name", "images", "kinds", "labels", "bytes", "sha256")} for shard in shards]
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def summary_of(out: Path, shards: Sequence[Mapping[str, Any]]) -> Summary:
    """What was written, of shards that are noted like this."""
    totals = {count: sum(shard[count] for shard in shards) for count in ("images", "labels", "bytes")}
    return Summary(out=out, shards=len(shards), **totals, seconds=0.0, left_out=sum(len(shard["left_out"]) for shard in shards))


class _Bad:
    """Counts samples that cannot be packed, and stops where they are too many."""

    def __init__(self, limit: int, before: int) -> None:
        self.limit, self.count = limit, before

    def passed(self, ready: Iterable[tuple[str, Prepared | BadEntry]]) -> Iterator[tuple[str, Prepared | BadEntry]]:
        """The same.  Raises DataError with the sample that is one too many."""
        for key, one in ready:
            if isinstance(one, BadEntry):
                self.count += 1
                if self.count > self.limit:
                    what = f"bad_samples={self.limit} lets no more pass" if self.limit else "bad_samples=N leaves it out"
                    raise DataError(f"{one}. Remove it, or put it right, and pack again: finished shards are kept. {what}.")
            yield key, one


def _numbered(
    ready: Iterable[tuple[str, Prepared | BadEntry]], options: Options, number: int, place: int
) -> Iterator[tuple[int, str, Prepared | BadEntry]]:
    """Each sample with the number of the shard that it goes to, from the first, which stands at `place` in the source.

    A shard has the samples of `shard_size` places, or fewer where they have too many bytes: so where one begins is known without those before.
    """
    count, weight, block = 0, 0, 0
    for at, (key, one) in enumerate(ready, place):
        if isinstance(one, Prepared):
            size = sum(map(len, one.sample.fields.values()))
            if count and (at // options.shard_size != block or weight + size > options.max_bytes):
                number, count, weight = number + 1, 0, 0
            count, weight, block = count + 1, weight + size, at // options.shard_size
        yield number, key, one


def _write(path: Path, group: Iterable[tuple[str, Prepared | BadEntry]]) -> dict[str, Any]:
    """Write a shard, and say what is in it."""
    from webdataset.writer import TarWriter

    keys, left_out, moments, kinds = Keys(), list[str](), list[Any](), Counter[str]()
    with path.open("wb") as file:
        with TarWriter(file, encoder=False, mtime=0, user="", group="", mode=0o644) as tar:
            for key, one in group:
                keys.add(key)
                if isinstance(one, BadEntry):
                    left_out.append(str(one))
                    continue
                tar.write({"__key__": one.sample.key, **one.sample.fields})
                kinds[one.kind] += 1
                moments += [one.moments] if one.moments else []
        if keys.count == len(left_out):
            raise DataError(f"{left_out[0]}. No sample behind it can be packed either.")
        file.flush()
        os.fsync(file.fileno())
    found = index.build(path)
    labels = sum(map_field(names) is not None for names in _fields(found))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    metadata = {"name": path.name, "images": len(found), "labels": labels, "bytes": found.stamp.size, "sha256": digest}
    return {**metadata, "entries": keys.count, "keys": keys.text(), "left_out": left_out, "kinds": kinds, "moments": moments}


def _fields(found: index.Index) -> Iterator[list[str]]:
    for i in range(len(found)):
        yield [field for field, _, _ in found.files(i)]
