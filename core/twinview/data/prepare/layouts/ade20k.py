"""ADE20K's scene parsing benchmark (sceneparsing.csail.mit.edu; github.com/CSAILVision/sceneparsing, README).

    SOURCE/images/training/ADE_train_00000001.jpg           (SOURCE is ADEChallengeData2016)
    SOURCE/annotations/training/ADE_train_00000001.png      (0 other, 1..150 the classes)
"""
from __future__ import annotations

from pathlib import Path

from twinview.data.formats.fields import MAP_FIELD
from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.common import keyed, label_maps, split_of, table
from twinview.data.store.listing import folder, image_field, images
from twinview.data.writing.entry import Entry, Relabeled

CLASSES = 150


def find(source: str | Path, split: str = "training") -> Found:
    """Every image of `training` or `validation` with its label map; classes count from 0 (the official number less one), 255 is `other`."""
    root = Path(source)
    pictures = folder(root / "images", "of ADE20K's images")
    split_of(split, {path.name for path in pictures.iterdir() if path.is_dir()})
    paths, others = images(pictures / split)
    drawn = label_maps(paths, lambda path: root / "annotations" / split / f"{path.stem}.png")
    numbers = table({n + 1: n for n in range(CLASSES)})
    keys = keyed(pictures / split, paths)
    entries = [Entry(key, {image_field(path): path, MAP_FIELD: Relabeled(drawn[path], numbers)}) for key, path in keys.items()]
    return Found(entries=entries, total=len(entries), passed_over=others)
