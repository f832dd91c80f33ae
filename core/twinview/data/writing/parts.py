"""Work that is split over machines: part 3 of 64, which processes know of each other only by what they leave in a folder."""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import attrs

from twinview.errors import DataError

A = TypeVar("A")


@attrs.frozen
class Part:
    """One of several parts, counted from 1 as SLURM's `--array=1-64` counts."""

    number: int
    parts: int

    @classmethod
    def read(cls, text: str) -> Part:
        """`3/64`.  Raises DataError."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise DataError(f"--part: wants which part of how many, from 1/64 to 64/64, not {text!r}.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    @property
    def name(self) -> str:
        """Of its file or folder; parts sort by it."""
        return f"{self.number:06}-of-{self.parts:06}"

    def share(self, count: int) -> range:
        """Which of so many things are its own; the parts together have all, each once, in order."""
        return range(count * (self.number - 1) // self.parts, count * self.number // self.parts)

    def of(self, things: Sequence[A]) -> Sequence[A]:
        """Its share of a list."""
        share = self.share(len(things))
        return things[share.start : share.stop]


def between(entries: Iterable[A], begin: int, end: int) -> Iterable[A]:
    """Those from `begin` to `end`: entries that can begin anywhere have a method of this name; of others those before are passed over."""
    if isinstance(entries, Sequence):
        return entries[begin:end]
    found: Iterable[A] = entries.between(begin, end) if hasattr(entries, "between") else islice(entries, begin, end)
    return found


def missing(found: Iterable[Part]) -> str:
    """Which parts are not there, in words; empty where all are.  `found` are of one number of parts."""
    there = sorted(found, key=lambda part: part.number)
    parts = there[0].parts
    lacking = sorted({*range(1, parts + 1)} - {part.number for part in there})
    shown = ", ".join(f"{number}/{parts}" for number in lacking[:5])
    return shown + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")


def folder_of(out: Path) -> Path:
    """Where the parts of OUT wait for each other."""
    return out.absolute().parent / f".{out.resolve().name}.parts"
