"""Features of a set of images by one encoder: in parts, on any number of ranks, so that a kill costs a part and not the whole."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from twinview.analysis.features.choose import Chosen
from twinview.analysis.features.files import Part, check_out, check_replaced, write
from twinview.analysis.targets import Target
from twinview.data.dataset.open import open_shards
from twinview.data.dataset.shards import Shards
from twinview.data.formats.decode import PixelFormat
from twinview.data.loading.factory import PlainImages
from twinview.data.loading.loader import load
from twinview.data.remote.shard import is_remote
from twinview.engine.distributed.process import Ranks, adopt_slurm, gathered, join, pick_device
from twinview.errors import DataError
from twinview.files import write_atomic, write_text
from twinview.machine import rank_variable
from twinview.progress import progress
from twinview.terminal import say
from twinview.values import Size

PART = 2048  # images of a part


@attrs.frozen(kw_only=True)
class Options:
    """What is computed, and how fast."""

    features: tuple[str, ...] = ("pooled",)  # see `choose.check_names`
    size: Size | None = None  # of the images in pixels; None: those that the target was trained on
    crop: bool = True  # the largest central box of that shape, instead of the whole image squeezed into it
    half: bool = False  # float16 in the file
    batch_size: int = 64
    workers: int = 2  # processes that read images, on each rank
    device: str = "auto"
    bad_images: int = 100  # that may fail to decode and are left out; one more ends the command
    mirrored: bool = False  # the mean of an image's features and its mirror image's, which then has the same ones


@attrs.frozen(kw_only=True)
class Embedding:
    """Features of images, in the order of the images."""

    keys: list[str]
    ids: NDArray[np.int64]  # [N] places in the set of images
    features: dict[str, NDArray[Any]]  # name -> [N, C], or [N, C, h, w]
    bad: list[str]  # images that were left out: which, and why


class _Done(NamedTuple):
    """A part that was computed."""

    ids: NDArray[np.int64]
    part: Part
    bad: list[str]


def open_images(images: str | Path | Sequence[str | Path]) -> Shards:
    """A folder of images (`images:DIR`, or DIR where it holds no .tar), or shards by path, URL or `scenes:val`.  Raises DataError."""
    names = [images] if isinstance(images, (str, Path)) else list(images)
    return open_shards([_spec(str(name)) for name in names])


def _spec(name: str) -> str:
    folder = Path(os.path.expanduser(name))
    if is_remote(name) or name.startswith(("scenes:", "images:")) or not folder.is_dir() or any(folder.glob("*.tar")):
        return name
    return f"images:{name}"


def embed(target: Target, images: Shards, options: Options) -> Embedding:
    """Features of all images, in this process and in memory.  Raises TwinviewError."""
    done = list(_computed(target, images, options, torch.device(pick_device(options.device)), range(_parts(images))))
    _say_bad(bad := [one for part in done for one in part.bad])
    done = _some([one for one in done if one.part.keys])
    features = {name: np.concatenate([one.part.features[name] for one in done]) for name in done[0].part.features}
    return Embedding(keys=[key for one in done for key in one.part.keys], ids=np.concatenate([one.ids for one in done]), features=features, bad=bad)


def embed_to(target: Target, images: Shards, out: Path, options: Options) -> int:
    """Write the features of all images to `out`, and give their number; every rank calls it.

    Parts are kept in `OUT.parts` until the file is whole: the same command goes on where it was stopped, on any number of ranks.
    Raises TwinviewError.
    """
    check_out(out, options.features)
    check_replaced(out)
    ranks = _ranks(options.device)
    folder = out.with_name(out.name + ".parts")
    fingerprint = _fingerprint(target, images, options)
    if len(set(gathered(fingerprint) if ranks.world > 1 else [fingerprint])) > 1:
        raise DataError("embed: ranks found other weights or other images. Name a checkpoint with --step, and give all machines the same images.")
    _begin(folder, f"{fingerprint} {images.version}", ranks)
    todo = [n for n in range(_parts(images)) if n % ranks.world == ranks.rank and not _is_done(folder, n)]
    for n, one in zip(todo, _computed(target, images, options, ranks.device, todo)):
        with write_atomic(_file(folder, n), sync=True) as file:
            arrays: dict[str, Any] = {"ids": one.ids, "keys": _packed(one.part.keys), "bad": _packed(one.bad)}
            arrays |= {f"f:{name}": values for name, values in one.part.features.items()}
            np.savez(file, **arrays)
    if ranks.world > 1:
        dist.barrier()
    if ranks.rank:
        return 0
    heads = [_read(folder, n, features=False) for n in range(_parts(images))]
    _say_bad(bad := [one for head in heads for one in head.bad])
    if len(bad) > options.bad_images:  # each rank and each sitting counted its own
        raise DataError(f"embed: {len(bad)} images were left out, and bad_images={options.bad_images} lets {options.bad_images} pass.")
    _some([head for head in heads if head.part.keys])
    total = sum(len(head.ids) for head in heads)
    about = {**target.described, "features": list(options.features), "size": list(options.size or target.transform.size), "crop": options.crop}
    write(out, (_read(folder, n).part for n, head in enumerate(heads) if head.part.keys), total, about)
    shutil.rmtree(folder)
    return total


def _ranks(device: str) -> Ranks:
    """Where this process stands; alone it needs no group."""
    adopt_slurm()
    if rank_variable("WORLD_SIZE", 1) > 1:
        return join(device)
    return Ranks(0, 1, torch.device(pick_device(device)))


def _computed(target: Target, images: Shards, options: Options, device: torch.device, parts: Sequence[int]) -> Iterator[_Done]:
    """The parts, in order."""
    choose = Chosen(target.encoder.to(device), options.features)
    form = PixelFormat(target.transform.channels, target.transform.white)
    make = PlainImages(images, form, options.size or target.transform.size, (), options.crop)
    batches = [(n, batch) for n in parts for batch in _batches(images, n, options.batch_size)]
    bad_seen = 0
    try:
        with closing(load(make, [batch for _, batch in batches], options.workers)) as loaded:
            rows, bad, ids, keys = list[dict[str, NDArray[Any]]](), list[str](), list[int](), list[str]()
            for at, (batch, failed) in enumerate(progress(loaded, len(batches), "embed", "batches")):
                bad += [str(one) for one in failed]
                bad_seen += len(failed)
                if bad_seen > options.bad_images:
                    raise DataError(f"{failed[-1]}. bad_images={options.bad_images} lets {options.bad_images} pass, and this is one more.")
                if batch.keys or not rows:
                    found = {}
                    if batch.keys:
                        pixels = target.transform.normalize(batch.images.to(device, non_blocking=True))
                        found = choose(pixels)
                        if options.mirrored:
                            found = {name: (value + other) / 2 for (name, value), other in zip(found.items(), choose(pixels.flip(-1)).values())}
                    rows.append({k: v.to(torch.float16 if options.half else torch.float32).cpu().numpy() for k, v in found.items()})
                    ids += batch.ids.tolist()
                    keys += batch.keys
                if at + 1 == len(batches) or batches[at + 1][0] != batches[at][0]:
                    whole = {k: np.concatenate([r[k] for r in rows if r]) for k in options.features if any(rows)}
                    yield _Done(np.array(ids, np.int64), Part(keys, whole), bad)
                    rows, bad, ids, keys = [], [], [], []
    finally:
        choose.close()


def _batches(images: Shards, part: int, size: int) -> list[range]:
    first, last = part * PART, min((part + 1) * PART, len(images))
    return [range(at, min(at + size, last)) for at in range(first, last, size)]


def _parts(images: Shards) -> int:
    return -(-len(images) // PART)


def _some(done: list[_Done]) -> list[_Done]:
    if not done:
        raise DataError("embed: no image could be read.")
    return done


def _say_bad(bad: Sequence[str]) -> None:
    for one in bad[:10]:
        say(f"{one}. Left out.")
    if len(bad) > 10:
        say(f"and {len(bad) - 10} more images that were left out")


# ---- the folder of parts
def _fingerprint(target: Target, images: Shards, options: Options) -> str:
    """What decides on the numbers of a part: weights, images, choice."""
    weights = 0
    for name, value in target.encoder.state_dict().items():
        weights = zlib.crc32(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes(), zlib.crc32(name.encode(), weights))
    chosen = [options.features, options.size or target.transform.size, options.crop, options.half, options.mirrored, PART]
    said = json.dumps([weights, attrs.asdict(target.transform), str(images.checksum), chosen])
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def _begin(folder: Path, fingerprint: str, ranks: Ranks) -> None:
    """Make the folder, or go on in it; what other weights, images or options left there is thrown away."""
    mark = folder / "fingerprint"
    if ranks.rank == 0:
        there = mark.read_text(encoding="utf-8") if mark.is_file() else ""
        if there != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_text(mark, fingerprint)
        elif done := len(list(folder.glob("part-*.npz"))):
            say(f"going on: {done} parts of {PART} images are there already")
    if ranks.world > 1:
        dist.barrier()


def _is_done(folder: Path, part: int) -> bool:
    """Whether a part is there and can be read."""
    try:
        _read(folder, part, features=False)
    except Exception:  # whatever is wrong with it, it is computed anew
        return False
    return True


def _file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:06d}.npz"


def _packed(texts: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)


def _read(folder: Path, part: int, *, features: bool = True) -> _Done:
    with np.load(_file(folder, part), allow_pickle=False) as file:
        keys, bad = (json.loads(file[name].tobytes()) for name in ("keys", "bad"))
        found = {name.removeprefix("f:"): file[name] for name in file.files if name.startswith("f:")} if features else {}
        return _Done(file["ids"], Part(keys, found), bad)
