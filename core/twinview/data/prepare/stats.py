"""Count what shards hold, and draw some of it."""
from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import BadSample, read_class, read_map, read_values
from twinview.data.dataset.shards import Shards
from twinview.data.formats.fields import map_field
from twinview.data.writing.statistics import measured, moments
from twinview.errors import DataError
from twinview.ops.pictures import photograph
from twinview.ops.sheet import Cell, Entry, palette, sheet
from twinview.progress import progress

COLUMNS, ROWS = 6, 4
HEIGHT, MOST = 150, 40  # pixels of a picture, and entries of the legend
IGNORED = 255  # the label of no class, drawn black


@attrs.frozen(kw_only=True)
class Stat:
    """What shards hold.  All below `bytes` is of `looked` samples, evenly spaced."""

    shards: int
    samples: int
    fields: dict[str, int]  # how many samples have it
    bytes: dict[str, int]  # of all files of a field
    looked: int
    bad: tuple[str, ...]  # what does not decode
    heights: tuple[int, ...]
    widths: tuple[int, ...]
    classes: Counter[int]  # of the field `cls`
    labels: Counter[int]  # pixels of the label maps
    colors: dict[str, Any]  # as in a manifest: channels, bits, mean, std, ...

    def lines(self) -> list[str]:
        """A table for a person."""
        found = [f"shards      {self.shards}, {sum(self.bytes.values()) / 1e6:.1f} MB", f"samples     {self.samples}"]
        for field, count in self.fields.items():
            found.append(f"{field:<11} {count}, {self.bytes[field] / 1e6:.1f} MB, {self.bytes[field] / count / 1e3:.1f} kB each")
        found.append(f"looked into {self.looked}, evenly spaced; {len(self.bad)} of them bad")
        found += [f"bad         {one}" for one in self.bad]
        for name, sizes in (("height", self.heights), ("width", self.widths)):
            if sizes:
                found.append(f"{name:<11} {min(sizes)} to {max(sizes)} pixels, median {statistics.median(sizes):.0f}")
        found += [f"{name:<11} {_plain(value)}" for name, value in self.colors.items() if name != "measured"]
        if self.classes:
            found.append(f"classes     {len(self.classes)}: {_shares(self.classes)}")
        if self.labels:
            found.append(f"label maps  {len(self.labels)} numbers, by pixels: {_shares(self.labels)}")
        return found


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} of {kind}" for kind, count in value.items())
    return "several" if value is None else str(value)


def _shares(counts: Counter[int], most: int = 12) -> str:
    total = sum(counts.values())
    shown = ", ".join(f"{number} {count / total:.1%}" for number, count in counts.most_common(most))
    return shown + (f" and {len(counts) - most} rarer" if len(counts) > most else "")


def count(spec: Sequence[str], images: int) -> Stat:
    """Count the fields of all samples, and look into at most `images` of them.  Raises DataError."""
    if images < 1:
        raise DataError(f"images: wants a number above 0, not {images}.")
    shards = open_shards(list(spec))
    fields, sizes = Counter[str](), Counter[str]()
    for found in shards.indexes:
        for kind, name in enumerate(found.fields):
            fields[name] += int((found.kinds == kind).sum())
            sizes[name] += int(found.sizes[found.kinds == kind].sum())
    bad, heights, widths, kinds, colors = list[str](), list[int](), list[int](), Counter[str](), list[Any]()
    classes, labels = Counter[int](), Counter[int]()
    places = _spread(len(shards), images)
    for i in progress(places, len(places), "stat", "samples"):
        names = shards.names(i)
        try:
            pixels = read_values(shards, i)
            kinds[f"{len(pixels)}x{8 * pixels.element_size()}"] += 1
            colors.append(moments(pixels))
            heights.append(pixels.shape[1])
            widths.append(pixels.shape[2])
            if "cls" in names:
                classes[read_class(shards, i)] += 1
            if map_field(names):
                numbers, counts = np.unique(read_map(shards, i).numpy(), return_counts=True)
                labels.update(dict(zip(numbers.tolist(), counts.tolist())))
        except (BadSample, DataError) as e:
            bad.append(str(e))
    return Stat(
        shards=len(shards.paths), samples=len(shards), fields=dict(sorted(fields.items())), bytes=sizes, looked=len(places), bad=tuple(bad),
        heights=tuple(heights), widths=tuple(widths), classes=classes, labels=labels, colors=measured(kinds, colors),
    )


def draw_sheet(spec: Sequence[str], out: Path) -> None:
    """Draw up to 24 samples, evenly spaced, with their keys, and their label maps beside them with a legend.  Raises DataError."""
    shards = open_shards(list(spec))
    places = _spread(len(shards), COLUMNS * ROWS)
    numbers = Counter[int]()
    cells = [cell for i in places for cell in _cells(shards, i, numbers)]
    per_row = 2 * (COLUMNS // 2) if numbers else COLUMNS
    legend = [Entry(_color(n), "no class (255)" if n == IGNORED else str(n)) for n in sorted(numbers)[:MOST]]
    legend += [Entry("white", f"and {len(numbers) - MOST} more numbers")] if len(numbers) > MOST else []
    title = f"{len(places)} of {len(shards)} samples, evenly spaced"
    caption = "On the right of each image its label map, one color for each number, over the image in grey." if numbers else ""
    drawn = sheet([cells[at : at + per_row] for at in range(0, len(cells), per_row)], title=title, legend=legend, caption=caption, height=HEIGHT)
    try:
        drawn.save(out, "PNG")
    except OSError as e:
        raise DataError(f"{out}: cannot be written: {e.strerror or e}.") from None


def _spread(total: int, most: int) -> list[int]:
    count = min(total, most)
    return [n * total // count for n in range(count)]


def _cells(shards: Shards, i: int, numbers: Counter[int]) -> list[Cell]:
    """A sample's picture, and its label map beside it; `numbers`: those that maps hold, counted."""
    key = shards.key(i).encode("utf-8", "backslashreplace").decode()
    try:
        pixels = photograph(read_values(shards, i))
        cells = [Cell(pixels, key)]
        if map_field(shards.names(i)):
            labels = read_map(shards, i)
            found, places = torch.unique(labels, return_inverse=True)
            numbers.update(found.tolist())
            colors = torch.tensor([_color(n) for n in found.tolist()], dtype=torch.float32)[places].movedim(-1, 0)
            grey = pixels.float().mean(0) if pixels.shape[1:] == labels.shape else torch.zeros(labels.shape)
            cells.append(Cell((0.3 * grey + 0.7 * colors).byte(), "labels"))
        return cells
    except (BadSample, DataError, ValueError) as e:
        return [Cell(torch.tensor([192, 32, 32], dtype=torch.uint8).view(3, 1, 1).expand(3, HEIGHT, HEIGHT).contiguous(), f"bad: {key}: {e}")]


def _color(number: int) -> tuple[int, int, int]:
    """Of a label: neighboring numbers lie far apart; black where there is no class."""
    return (0, 0, 0) if number == IGNORED else palette(number + 1)[number]
