"""What most layouts need: the images under a folder in order, their keys, and label maps that are there."""
from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from twinview.data import decode
from twinview.errors import DataError

SUFFIXES = tuple("." + field for field in decode.IMAGE_FIELDS)


def folder(path: Path, what: str) -> Path:
    """The same path.  Raises DataError where it is no folder; `what` says what it would be."""
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder {what}.")
    return path


class Listing(NamedTuple):
    """What lies under a folder; paths are relative to it."""

    images: list[str]  # in the order of their paths' parts
    others: int  # files that are no images by their suffix
    folders: list[tuple[str, int, int]]  # each folder, and when it last changed (mtime, ctime in ns)


def listing(root: Path, without: Path | None = None) -> Listing:
    """List a folder, however deep.  Links are followed; the folder `without` is left out.

    Raises DataError: no folder, no images, a folder that cannot be read or lies within itself by a link.
    """
    images, others, folders = list[str](), 0, list[tuple[str, int, int]]()
    todo: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]  # files and folders, the next one last; the folders that hold it
    within = folder(root, "of images")
    left_out = without.resolve() if without else None
    while todo:
        name, above = todo.pop()
        if name and not name.endswith("/"):
            images.append(name)
            continue
        try:
            about = os.stat(within / name)  # before its entries: what changes meanwhile leaves a later time
            entries = sorted(os.scandir(within / name), key=lambda entry: entry.name)
        except OSError as e:
            raise DataError(f"{within / name}: cannot be read: {e.strerror}.") from None
        itself = (about.st_dev, about.st_ino)
        if itself in above:
            raise DataError(f"{within / name}: is a link to a folder that holds it. Remove the link.")
        folders.append((name, about.st_mtime_ns, about.st_ctime_ns))
        for entry in reversed(entries):
            if entry.is_dir():
                if left_out is None or Path(entry.path).resolve() != left_out:
                    todo.append((f"{name}{entry.name}/", (*above, itself)))
            elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
                todo.append((name + entry.name, ()))
            else:
                others += 1
    if not images:
        raise DataError(f"{root}: holds no images ({', '.join(SUFFIXES)}).")
    return Listing(images, others, folders)


def images(root: Path, without: Path | None = None) -> tuple[list[Path], int]:
    """The images under a folder, sorted, and how many other files it has; see `listing`."""
    found = listing(root, without)
    return [root / name for name in found.images], found.others


def split_of(split: str, splits: Collection[str]) -> str:
    """The same split.  Raises DataError where it is none of the data set's."""
    if split not in splits:
        raise DataError(f"--split: there is no split {split!r}. There is: {', '.join(sorted(splits)) or 'none'}.")
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


def key_of(path: str, short: Callable[[str], str] = str) -> str:
    """The key of a file; see `keyed`."""
    return re.sub(r"[^\w/-]", "_", short(path.rpartition(".")[0]))


def image_field(path: str | Path) -> str:
    """The field that an image file becomes."""
    return str(path).rpartition(".")[2].lower().replace("jpeg", "jpg")


def label_maps(pictures: Iterable[Path], place: Callable[[Path], Path]) -> dict[Path, Path]:
    """The label map of each image.  Raises DataError where one is missing, and says how many are."""
    maps = {path: place(path) for path in pictures}
    missing = [path for path, label in maps.items() if not label.is_file()]
    if missing:
        few = f"{len(missing)} of {len(maps)} have none"
        raise DataError(f"{missing[0]}: has no label map {maps[missing[0]]} ({few}). Add it, or pack without labels.")
    return maps


def read_json(path: Path, *wanted: str) -> dict[str, Any]:
    """A JSON table with the keys `wanted`.  Raises DataError."""
    try:
        table = json.loads(path.read_bytes())
        return {key: table[key] for key in wanted}
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}.") from None
    except (ValueError, TypeError, KeyError) as e:
        raise DataError(f"{path}: is no such annotation file: {type(e).__name__}: {e}. It has {', '.join(wanted)}.") from None


def read_lines(path: Path) -> list[str]:
    """The first word of each line that has one.  Raises DataError."""
    try:
        return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read: {e}.") from None


def table(numbers: dict[int, int], other: int = 255) -> tuple[int, ...]:
    """256 numbers: n -> numbers[n], and `other` where that says nothing."""
    return tuple(numbers.get(n, other) for n in range(256))


def json_bytes(value: Any) -> bytes:
    """JSON with sorted keys and no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def names_of(categories: Sequence[dict[str, Any]]) -> dict[str, str]:
    """COCO's categories as {id: name}."""
    return {str(one["id"]): str(one["name"]) for one in sorted(categories, key=lambda one: int(one["id"]))}
