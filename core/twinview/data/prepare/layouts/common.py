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
    return partners_of(pictures, place, "label map")


def partners_of(pictures: Iterable[Path], place: Callable[[Path], Path], what: str) -> dict[Path, Path]:
    """The file that belongs to each image.  Raises DataError where one is missing, and says how many are."""
    files = {path: place(path) for path in pictures}
    missing = [path for path, file in files.items() if not file.is_file()]
    if missing:
        few = f"{len(missing)} of {len(files)} have none"
        without = "labels" if what == "label map" else what
        raise DataError(f"{missing[0]}: has no {what} {files[missing[0]]} ({few}). Add it, or pack without {without}.")
    return files


def read_json(path: Path, *wanted: str) -> dict[str, Any]:
    """A JSON table that has the keys `wanted`.  Raises DataError."""
    try:
        table = json.loads(read_regular(path, None))
        return {**table, **{key: table[key] for key in wanted}}
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}.") from None
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise DataError(f"{path}: is no such annotation file: {type(e).__name__}: {e}. It has {', '.join(wanted)}.") from None


def read_frames(path: Path) -> list[dict[str, Any]]:
    """A JSON list of tables, or a table with such a list as `frames` (Scalabel's format).  Raises DataError."""
    try:
        said = json.loads(read_regular(path, None))
        frames = said["frames"] if isinstance(said, dict) else said
        if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
            raise ValueError("is no list of tables")
        return frames
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}.") from None
    except (ValueError, KeyError, RecursionError) as e:
        raise DataError(f"{path}: is no annotation file of Scalabel's format: {type(e).__name__}: {e}.") from None


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
