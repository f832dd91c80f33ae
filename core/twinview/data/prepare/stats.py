"""Count what shards hold, and draw some of it."""
from __future__ import annotations

import colorsys
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import BadSample, read_class, read_map, read_values
from twinview.data.dataset.shards import Shards
from twinview.data.formats.fields import map_field
from twinview.data.writing.statistics import measured, moments
from twinview.errors import DataError
from twinview.ops.pictures import photograph
from twinview.progress import progress

COLUMNS, ROWS = 6, 4
TILE = (200, 150)  # width, height in pixels
TITLE, GAP = 16, 8
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
    """Draw 24 samples, evenly spaced, under their keys; a label map lies over the lower half of its image.  Raises DataError."""
    shards = open_shards(list(spec))
    width, height = TILE[0] + GAP, TILE[1] + TITLE + GAP
    places = _spread(len(shards), COLUMNS * ROWS)
    columns = min(COLUMNS, len(places))
    sheet = Image.new("RGB", (GAP + columns * width, GAP + -(-len(places) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for n, i in enumerate(places):
        x, y = GAP + n % columns * width, GAP + n // columns * height
        draw.text((x, y), _short(shards.key(i)), fill="black")
        tile = _tile(shards, i)
        sheet.paste(tile, (x + (TILE[0] - tile.width) // 2, y + TITLE))
    try:
        sheet.save(out, "PNG")
    except OSError as e:
        raise DataError(f"{out}: cannot be written: {e.strerror or e}.") from None


def _spread(total: int, most: int) -> list[int]:
    count = min(total, most)
    return [n * total // count for n in range(count)]


def _short(key: str, most: int = 32) -> str:
    text = key.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else "…" + text[1 - most :]


def _tile(shards: Shards, i: int) -> Image.Image:
    try:
        pixels = photograph(read_values(shards, i)).permute(1, 2, 0).numpy()
        if map_field(shards.names(i)):
            drawn = _colored(read_map(shards, i).numpy())
            half = pixels.shape[0] // 2
            pixels = np.concatenate([pixels[:half], (pixels[half:] * 0.35 + drawn[half:] * 0.65).astype(np.uint8)])
    except (BadSample, DataError, ValueError):
        return Image.new("RGB", TILE, "#c02020")
    picture = Image.fromarray(pixels)
    picture.thumbnail(TILE)
    return picture


def _colored(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[H, W] numbers -> [H, W, 3] colours; neighbouring numbers lie far apart on the wheel."""
    numbers, places = np.unique(labels, return_inverse=True)
    wheel = [(0.0, 0.0, 0.0) if n == IGNORED else colorsys.hsv_to_rgb(n * 0.618 % 1, 0.75, 1.0) for n in numbers.tolist()]
    return (np.array(wheel) * 255).astype(np.uint8)[places].reshape(*labels.shape, 3)
