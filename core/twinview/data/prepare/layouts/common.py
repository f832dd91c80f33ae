"""What most layouts need: the images under a folder in order, their keys, and label maps that are there."""
from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from twinview.data.store.listing import key_of
from twinview.data.store.regular import read_regular
from twinview.errors import DataError


def split_of(split: str, splits: Collection[str]) -> str:
    """The same split.  Raises DataError where it is none of the data set's."""
    if split not in splits:
        raise DataError(f"split: there is no split {split!r}. There is: {', '.join(sorted(splits)) or 'none'}.")
    return split


def keyed(root: Path, paths: Iterable[Path], short: Callable[[str], str] = str) -> dict[str, Path]:
    """Paths by key: below `root`, without the suffix, what is neither letter, digit, `/`, `-` nor `_` as `_`.  `short` cuts a key down first."""
    found: dict[str, Path] = {}
    for path in paths:
        key = key_of(path.relative_to(root).as_posix(), short)
        if key in found:
            raise DataError(f"{path}: its key {key!r} is that of {found[key]} too. Rename one of the two.")
        found[key] = path
    return found


def label_maps(pictures: Iterable[Path], place: Callable[[Path], Path]) -> dict[Path, Path]:
    """The label map of each image.  Raises DataError where one is missing, and says how many are."""
    maps = {path: place(path) for path in pictures}
    missing = [path for path, label in maps.items() if not label.is_file()]
    if missing:
        few = f"{len(missing)} of {len(maps)} have none"
        raise DataError(f"{missing[0]}: has no label map {maps[missing[0]]} ({few}). Add it, or pack without labels.")
    return maps


def read_json(path: Path, *wanted: str) -> dict[str, Any]:
    """A JSON table that has the keys `wanted`.  Raises DataError."""
    try:
        table = json.loads(read_regular(path, None))
        return {**table, **{key: table[key] for key in wanted}}
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}.") from None
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise DataError(f"{path}: is no such annotation file: {type(e).__name__}: {e}. It has {', '.join(wanted)}.") from None


def read_lines(path: Path) -> list[str]:
    """The first word of each line that has one.  Raises DataError."""
    try:
        return [line.split()[0] for line in read_regular(path, None).decode("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read: {e}.") from None


def table(numbers: dict[int, int], other: int = 255) -> tuple[int, ...]:
    """256 numbers: n -> numbers[n], and `other` where that says nothing."""
    return tuple(numbers.get(n, other) for n in range(256))


def json_bytes(value: Any) -> bytes:
    """JSON with sorted keys and no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
