"""A sample that is to be packed."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Relabeled(NamedTuple):
    """A label map whose numbers change on the way: n becomes table[n]."""

    path: Path
    table: tuple[int, ...]  # of 256


Content = bytes | Path | Relabeled


class Entry(NamedTuple):
    """A sample to be packed; its files are read when it is its turn."""

    key: str
    fields: dict[str, Content]
