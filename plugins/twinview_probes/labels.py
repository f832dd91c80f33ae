"""Label maps: which label of a data set belongs to which class of a benchmark."""
from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from twinview.errors import RecipeError, closest

FOLDER = Path(__file__).parent / "label_maps"
IGNORE = 255
LABELS = 256  # that a label map can hold


class LabelMap(NamedTuple):
    """Classes of a benchmark.  `lookup` [256]: the class of each label, 255 for none."""

    names: tuple[str, ...]
    things: tuple[int, ...]  # classes that are countable objects; the others are stuff
    lookup: Tensor

    def __call__(self, labels: Tensor) -> Tensor:
        """Labels [...] of 0..255 -> classes, 255 where a label has none."""
        return self.lookup.to(labels.device)[labels]


def read_label_map(name: str) -> LabelMap:
    """A label map by name, or a .toml file with `names`, `things` and `fine` (the class of each label).  Raises RecipeError."""
    known = sorted(p.stem for p in FOLDER.glob("*.toml"))
    path = Path(os.path.expanduser(name)) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise RecipeError(f"labels: there is no label map {name!r}.{closest(name, known)} Or write a .toml file of your own.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        names, things, fine = tuple(table["names"]), tuple(table.get("things", ())), torch.tensor(table["fine"], dtype=torch.int64)
        if isinstance(table["names"], str) or not all(thing in range(len(names)) for thing in things):
            raise ValueError("names is a list, and things are places in it")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as e:
        raise RecipeError(f"labels: {name} is no label map: {type(e).__name__}: {e}. Write names, things and fine, a class for each label.") from None
    sound = (fine == IGNORE) | ((fine >= 0) & (fine < len(names)))
    if fine.ndim != 1 or len(fine) > LABELS or not sound.all():
        raise RecipeError(f"labels: {name}: fine wants up to {LABELS} classes from 0 to {len(names) - 1}, or {IGNORE} for none.")
    lookup = torch.full((LABELS,), IGNORE)
    lookup[: len(fine)] = fine
    return LabelMap(names, things, lookup)
