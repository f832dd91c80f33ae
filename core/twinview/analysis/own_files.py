"""What a command may write over: its own earlier files, and no others."""
from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from twinview.errors import TwinviewError

MARK = b"twinview"  # stands in each file of tensors or features that twinview writes: in its head, its list of contents or its metadata
ENDS = 1 << 16  # bytes at either end of a file, where formats keep these


def refuse_others(command: str, paths: Iterable[Path], own: Callable[[Path], bool], fault: type[TwinviewError]) -> None:
    """Raises `fault` for the first of `paths` that is there already, and of which `own` does not know that `command` wrote it."""
    for path in paths:
        if path.is_dir():
            raise fault(f"{path}: is a folder, and a file is written. Name another place.")
        if path.exists() and not own(path):
            raise fault(f"{path}: is there already, and `{command}` did not write it. Name another place, or move that file away.")


def marked(path: Path) -> bool:
    """Whether `path` is a file with twinview's mark; it is neither parsed nor unpickled."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if MARK in file.read(ENDS):
                return True
            file.seek(max(size - ENDS, 0))
            return MARK in file.read()
    except OSError:
        return False


def has_keys(path: Path, keys: Collection[str]) -> bool:
    """Whether `path` is a .json file of a table with all of `keys`."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(table, dict) and set(keys) <= table.keys()
