"""The image, label map or class of a sample.  A sample that cannot be decoded raises BadSample with the reason."""
from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from twinview.data.dataset.base import Samples
from twinview.data.formats.decode import RGB, PixelFormat, image, label_map, values
from twinview.data.formats.fields import IMAGE_FIELDS, MAP_FIELD, image_field, map_field
from twinview.data.rng import key_hash
from twinview.errors import DataError

T = TypeVar("T")


class BadSample(Exception):
    """A sample that cannot be decoded: which, and why."""

    def __init__(self, index: int, place: str, reason: str) -> None:
        super().__init__(index, place, reason)  # as it is pickled between processes
        self.index, self.place, self.reason = index, place, reason

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def bad_sample(shards: Samples, i: int, reason: str) -> BadSample:
    """Name a sample by its shard and key."""
    return BadSample(i, f"{shards.path(i)}, sample {shards.key(i)!r}", reason)


def read_image(shards: Samples, i: int, form: PixelFormat = RGB) -> Tensor:
    """The image of sample `i` as `image` gives it.  Raises BadSample."""
    return read(shards, i, lambda data: image(data, form))


def read_values(shards: Samples, i: int) -> Tensor:
    """The image of sample `i` as it is: `values`.  Raises BadSample."""
    return read(shards, i, values)


def read(shards: Samples, i: int, use: Callable[[bytes], T]) -> T:
    """The result of `use`, given the bytes of sample `i`'s image.  A ValueError of it becomes a BadSample."""
    field = image_field(shards.names(i))
    if field is None:
        raise bad_sample(shards, i, f"has no image ({', '.join(IMAGE_FIELDS)}); it has {', '.join(shards.names(i))}")
    return tried(shards, i, lambda: use(shards.read(i, (field,)).fields[field]))


def tried(shards: Samples, i: int, work: Callable[[], T]) -> T:
    """The result of `work`, done on sample `i`.  A ValueError of it becomes a BadSample."""
    try:
        return work()
    except ValueError as e:
        raise bad_sample(shards, i, str(e)) from None


def read_class(shards: Samples, i: int) -> int:
    """The class of sample `i`, field `cls`: its number; a word, or a number beyond 63 bits, is hashed to one.

    Raises DataError: where labels are asked for, none may be missing.
    """
    fields = shards.read(i, ("cls",)).fields
    if "cls" not in fields:
        raise DataError(f"{bad_sample(shards, i, 'has no class (field cls)')}; it has {', '.join(shards.names(i))}.")
    text = fields["cls"].strip()
    number = int(text) if text.removeprefix(b"-").isdigit() and len(text) < 64 else None
    if not text or (number is not None and number < 0):
        raise DataError(f"{bad_sample(shards, i, 'has no class')}; its field cls holds {text[:20]!r}.")
    return number if number is not None and number < 1 << 63 else key_hash(text.decode("utf-8", "surrogateescape")) & (1 << 63) - 1


def read_annotations(shards: Samples, i: int) -> list[dict[str, Any]]:
    """The annotations of sample `i` in COCO's format, field `json` (`annotations`).  Raises DataError where there are none to read."""
    try:
        found = json.loads(shards.read(i, ("json",)).fields["json"])["annotations"]
    except KeyError:
        raise DataError(f"{bad_sample(shards, i, 'has no annotations (field json, as `twinview shards pack coco` writes it)')}.") from None
    except (ValueError, TypeError, RecursionError):
        raise DataError(f"{bad_sample(shards, i, 'its field json is no JSON with annotations')}.") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(f"{bad_sample(shards, i, 'its annotations are no list of tables')}.")
    return found


def read_map(shards: Samples, i: int) -> Tensor:
    """The label map of sample `i`, [H, W] int64.  Raises DataError: where labels are asked for, none may be missing."""
    names = shards.names(i)
    field = map_field(names)
    if field is None:
        raise DataError(f"{bad_sample(shards, i, 'has no label map')} ({MAP_FIELD}, or png beside a jpg); it has {', '.join(names)}.")
    try:
        return label_map(shards.read(i, (field,)).fields[field])
    except ValueError as e:
        raise DataError(f"{bad_sample(shards, i, f'its label map {e}')}.") from None
