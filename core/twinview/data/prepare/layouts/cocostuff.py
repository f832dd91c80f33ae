"""COCO-Stuff 164K: COCO's images with its pixel maps (github.com/nightrome/cocostuff, "Downloads" and "Label format").

    SOURCE/train2017/000000000009.jpg                   or SOURCE/images/train2017/...
    SOURCE/stuffthingmaps/train2017/000000000009.png    (stuffthingmaps_trainval2017.zip)

A pixel is 0..181, the number of its class in labels.txt less one: things 0..90, stuff 91..181; 255 is unlabeled.
"""
from __future__ import annotations

from pathlib import Path

from twinview.data.formats.fields import MAP_FIELD
from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.common import keyed, label_maps, split_of
from twinview.data.prepare.layouts.partners import spare_maps, visible
from twinview.data.store.listing import folder, image_field, images
from twinview.data.writing.entry import Entry


def find(source: str | Path, split: str = "train2017") -> Found:
    """Every image of `train2017` or `val2017` with its pixel map, unchanged."""
    root = Path(source)
    maps = folder(root / "stuffthingmaps", "of pixel maps")
    split_of(split, {path.name for path in visible(maps.iterdir()) if path.is_dir()})
    pictures = root / "images" / split if (root / "images").is_dir() else root / split
    paths, others = images(pictures)
    drawn = label_maps(paths, lambda path: maps / split / f"{path.stem}.png")
    entries = [Entry(key, {image_field(path): path, MAP_FIELD: drawn[path]}) for key, path in keyed(pictures, paths).items()]
    spare = spare_maps(maps / split, "*.png", drawn.values())
    return Found(entries=entries, total=len(entries), passed_over=others, unmatched=spare)
