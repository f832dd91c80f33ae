"""The image files under a folder, in order, and their keys."""
from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from twinview.data.formats.fields import IMAGE_FIELDS
from twinview.errors import DataError

SUFFIXES = tuple("." + field for field in IMAGE_FIELDS)
SAME = {  # suffixes of one format, which become one field
    **dict.fromkeys(("jpeg", "jpe", "jfif", "mpo"), "jpg"), "heif": "heic", **dict.fromkeys(("j2k", "jpx", "jpf"), "jp2"),
}
NOT_DATA = frozenset(  # folders that systems, network disks and archives put beside a user's own; so are all that begin with a dot
    ("@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot", "__MACOSX", "__pycache__", "$RECYCLE.BIN", "lost+found",
     "System Volume Information")
)
HIDDEN, HIDDEN_FILES, BARE = "hidden folders", "hidden files", "without a suffix"  # kinds of what is passed over, beside suffixes
KINDS_NAMED = 5


def folder(path: Path, what: str) -> Path:
    """The same path.  Raises DataError where it is no folder; `what` says what it would be."""
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder {what}.")
    return path


class Listing(NamedTuple):
    """What lies under a folder; paths are relative to it."""

    images: list[str]  # in the order of their paths' parts
    others: Counter[str]  # what is passed over, by kind: files by their suffix (.txt), hidden files, hidden folders
    folders: list[tuple[str, int, int]]  # each folder, and when it last changed (mtime, ctime in ns)


def listing(root: Path, without: Path | None = None) -> Listing:
    """List a folder, however deep.  Links are followed; the folder `without` and hidden ones are left out.

    Raises DataError: no folder, no images, a folder that cannot be read or lies within itself by a link.
    """
    images, others, folders = list[str](), Counter[str](), list[tuple[str, int, int]]()
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
            if entry.is_dir() and hidden(entry.name):
                others[HIDDEN] += 1
            elif entry.is_dir():
                if left_out is None or Path(entry.path).resolve() != left_out:
                    todo.append((f"{name}{entry.name}/", (*above, itself)))
            elif entry.name.startswith("."):  # what systems keep beside a user's own (.DS_Store, ._a.jpg), whatever its suffix
                others[HIDDEN_FILES] += 1
            elif entry.name.lower().endswith(SUFFIXES):
                todo.append((name + entry.name, ()))
            else:
                others[os.path.splitext(entry.name)[1].lower() or BARE] += 1
    if not images:
        raise DataError(f"{root}: holds no images ({', '.join(SUFFIXES)}).")
    return Listing(images, others, folders)


def hidden(name: str) -> bool:
    """Whether a folder of this name holds no data of its user's: .ipynb_checkpoints, .thumbnails, @eaDir, __MACOSX."""
    return name.startswith(".") or name in NOT_DATA


def passed_over(others: Mapping[str, int]) -> str:
    """`9 other files passed over (7 .txt, 2 .mp4)`; empty where there are none."""
    kinds = Counter(others)
    folders, dotted, files = kinds.pop(HIDDEN, 0), kinds.pop(HIDDEN_FILES, 0), kinds.total()
    ordered = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    named = [f"{count} {kind}" for kind, count in ordered[:KINDS_NAMED]]
    if rest := sum(count for _, count in ordered[KINDS_NAMED:]):
        named.append(f"{rest} of other kinds")
    said = [f"{files} other file{'s' * (files != 1)} passed over ({', '.join(named)})"] if files else []
    said += [f"{folders} hidden folder{'s' * (folders != 1)} passed over"] if folders else []
    said += [f"{dotted} hidden file{'s' * (dotted != 1)} passed over"] if dotted else []
    return "; ".join(said)


def images(root: Path, without: Path | None = None) -> tuple[list[Path], Counter[str]]:
    """The images under a folder, sorted, and what else it has by kind; see `listing`."""
    found = listing(root, without)
    return [root / name for name in found.images], found.others


def key_of(path: str, short: Callable[[str], str] = str) -> str:
    """The key of a file; see `keyed`."""
    return re.sub(r"[^\w/-]", "_", short(os.path.splitext(path)[0]))


def image_field(path: str | Path) -> str:
    """The field that an image file becomes: its suffix, `jpg` where that is none of an image; what counts is the bytes."""
    suffix = os.path.splitext(path)[1].lower().removeprefix(".")
    return SAME.get(suffix, suffix if suffix in IMAGE_FIELDS else "jpg")
