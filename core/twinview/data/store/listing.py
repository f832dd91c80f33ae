"""The image files under a folder, in order, and their keys."""
from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from twinview.data.formats.fields import IMAGE_FIELDS
from twinview.errors import DataError

SUFFIXES = tuple("." + field for field in IMAGE_FIELDS)


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


def key_of(path: str, short: Callable[[str], str] = str) -> str:
    """The key of a file; see `keyed`."""
    return re.sub(r"[^\w/-]", "_", short(path.rpartition(".")[0]))


def image_field(path: str | Path) -> str:
    """The field that an image file becomes."""
    return str(path).rpartition(".")[2].lower().replace("jpeg", "jpg")
