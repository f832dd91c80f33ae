"""What the manifests beside shards say of their images: whether they are such as a recipe trains, and [data] mean and std = "shards"."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np

from twinview.data.dataset.base import DataSource
from twinview.data.formats.npy_tiff import FULL
from twinview.data.remote.anywhere import Shard, file_name, manifest_place
from twinview.data.remote.base import PIPE, shown
from twinview.data.remote.shard import is_remote
from twinview.data.remote.transport import small
from twinview.data.store import manifest
from twinview.data.store.manifest import Kind, Manifest
from twinview.errors import DataError
from twinview.recipe import Recipe
from twinview.recipe.tables import MEASURED, Data

DIGITS = 7


def with_measured(recipe: Recipe, shards: DataSource) -> Recipe:
    """The recipe with [data] mean and std in numbers, where it leaves them to the shards.

    Raises DataError where the manifests name more images that the recipe does not take than [data] bad_samples, or the numbers are asked for
    and not there, or not the same everywhere.
    """
    data = recipe.data
    asked = MEASURED in (data.mean, data.std)
    found = {place: _manifest(place, asked) for place in dict.fromkeys(map(manifest_place, shards.paths))}
    _check_kinds(data, _kinds(shards.paths, found), found)
    if not asked:
        return recipe
    mean, std = _numbers(data, found)
    data = attrs.evolve(data, mean=mean if data.mean == MEASURED else data.mean, std=std if data.std == MEASURED else data.std)
    return attrs.evolve(recipe, data=data)


def class_names(shards: DataSource) -> tuple[str, ...]:
    """The names of the classes, by number, as the manifests beside the shards say; empty where one says none.

    Raises DataError where they number other classes.
    """
    found = {place: _manifest(place, True).classes for place in dict.fromkeys(map(manifest_place, shards.paths))}
    if not all(found.values()):
        return ()
    (first, names), *others = found.items()
    for place, other in others:
        if gap := other_class(names, other):
            raise DataError(f"{shown(place)} and {shown(first)}: number other classes: {gap}. Pack all of them with the same classes.")
    return max(found.values(), key=len)


def other_class(one: Sequence[str], other: Sequence[str]) -> str:
    """The first number that stands for other classes, in words; empty where those that both have are the same."""
    return next((f"{n} is {b!r}, and {a!r}" for n, (a, b) in enumerate(zip(one, other)) if a != b), "")


def _manifest(place: str, asked: bool) -> Manifest:
    """That of a folder without one where there is none that `pack` wrote; one that lies elsewhere is fetched where its numbers are `asked` for."""
    if not is_remote(place):
        return manifest.beside(Path(place).parent)
    data = small(place) if asked and not place.startswith(PIPE) else None
    return manifest.parse(data or b"") or Manifest()


def _kinds(paths: Iterable[Shard], found: Mapping[str, Manifest]) -> Counter[Kind]:
    """Images by (channels, bits), of the shards that a manifest tells of."""
    kinds = Counter[Kind]()
    for path in paths:
        shard = found[manifest_place(path)].shards.get(file_name(path))
        kinds.update(shard.kinds if shard else {})
    return kinds


def _check_kinds(data: Data, kinds: Mapping[Kind, int], found: Mapping[str, Manifest]) -> None:
    def taken(channels: int, bits: int) -> bool:
        return channels in ((1, 3) if data.channels == 3 else (data.channels,)) and (bits == 8 or data.white > 0)

    if sum(count for kind, count in kinds.items() if not taken(*kind)) <= data.bad_samples:
        return
    there = ", ".join(f"{count} of {channels} x {bits} bits" for (channels, bits), count in sorted(kinds.items()))
    said = f"[data] channels = {data.channels}, white = {data.white}: the shards hold other images: {there}"
    counts = {channels for channels, _ in kinds}
    if len(counts) > 1 and counts != {1, 3}:
        raise DataError(f"{said}. A recipe trains images of one number of channels: pack each by itself.")
    largest = max((max(one.largest) for one in found.values() if one.largest), default=0)
    deep = any(bits == 16 for _, bits in kinds)
    scale = f", white = {data.white or FULL[16]}" if deep else ""
    if deep and largest:
        scale += f" (what is full scale; the largest value seen is {largest})"
    raise DataError(f"{said}. Write channels = {max(counts)}{scale}.")


def _numbers(data: Data, found: Mapping[str, Manifest]) -> tuple[list[float], list[float]]:
    """Mean and deviation on the scale of the recipe.  Raises DataError."""
    for place, one in found.items():
        if len(one.mean) not in (1, data.channels) or len(one.std) != len(one.mean):
            mixes = one.kinds and not one.mean
            why = "measured none: it mixes kinds of images" if mixes else "is not there, or not of `twinview shards pack`"
            measure = "`twinview shards stat` measures them"
            raise DataError(f'[data] mean, std = "{MEASURED}": {shown(place) if is_remote(place) else place} {why}. Write numbers; {measure}.')
    each = [(_scaled(data, one, one.mean), _scaled(data, one, one.std), one.images) for one in found.values()]
    if any(one[:2] != each[0][:2] for one in each):
        mean, std = _pooled(each)
        said = f'[data] mean, std = "{MEASURED}": {len(each)} manifests do not agree'
        raise DataError(f"{said}. Write mean = {mean}, std = {std} (of all their images).")
    if not all(x > 0 for x in each[0][1]):
        said = f'[data] std = "{MEASURED}": is {each[0][1]}'
        raise DataError(f"{said}; a channel of 0 is the same everywhere, and cannot be normalized. Write numbers.")
    return each[0][:2]


def _scaled(data: Data, one: Manifest, measured: Sequence[float]) -> list[float]:
    """The numbers of a manifest as shares of the recipe's white."""
    factor = FULL[16] / data.white if one.bits == 16 else 1
    numbers = [x if factor == 1 else round(x * factor, DIGITS) for x in measured]
    return numbers * (data.channels // len(numbers))


def _pooled(each: Sequence[tuple[list[float], list[float], int]]) -> tuple[list[float], list[float]]:
    means, stds, images = (np.array(column, dtype=float) for column in zip(*each))
    mean = np.average(means, 0, images)
    std = np.sqrt(np.average(stds**2 + means**2, 0, images) - mean**2)
    return [round(float(x), 4) for x in mean], [round(float(x), 4) for x in std]
