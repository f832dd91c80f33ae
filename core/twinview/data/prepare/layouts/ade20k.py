"""ADE20K's scene parsing benchmark (sceneparsing.csail.mit.edu; github.com/CSAILVision/sceneparsing, README).

    SOURCE/images/training/ADE_train_00000001.jpg           (SOURCE is ADEChallengeData2016)
    SOURCE/annotations/training/ADE_train_00000001.png      (0 other, 1..150 the classes)
    SOURCE/objectInfo150.txt                                (their names, in the last column)
"""
from __future__ import annotations

from pathlib import Path

from twinview.data.formats.fields import MAP_FIELD
from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.common import keyed, label_maps, split_of, table
from twinview.data.prepare.layouts.partners import spare_maps, visible
from twinview.data.store.listing import folder, image_field, images
from twinview.data.writing.entry import Entry, Relabeled

CLASSES = 150


def find(source: str | Path, split: str = "training") -> Found:
    """Every image of `training` or `validation` with its label map; classes count from 0 (the official number less one), 255 is `other`."""
    root = Path(source)
    pictures = folder(root / "images", "of ADE20K's images")
    split_of(split, {path.name for path in visible(pictures.iterdir()) if path.is_dir()})
    paths, others = images(pictures / split)
    drawn = label_maps(paths, lambda path: root / "annotations" / split / f"{path.stem}.png")
    numbers = table({n + 1: n for n in range(CLASSES)})
    keys = keyed(pictures / split, paths)
    entries = [Entry(key, {image_field(path): path, MAP_FIELD: Relabeled(drawn[path], numbers)}) for key, path in keys.items()]
    spare = spare_maps(root / "annotations" / split, "*.png", drawn.values())
    return Found(entries=entries, total=len(entries), metadata=_names(root / "objectInfo150.txt"), passed_over=others, unmatched=spare)


def _names(table: Path) -> dict[str, list[str]]:
    """`classes` for the manifest; none where the table is not there or not of 150 classes."""
    try:
        rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()] if table.is_file() else []
    except (OSError, UnicodeDecodeError):
        return {}
    names = [row[-1].strip() for row in rows if row[0].strip().isdecimal()]
    return {"classes": names} if len(names) == CLASSES else {}
