"""Cityscapes: left camera images with fine labels (cityscapes-dataset.com; github.com/mcordts/cityscapesScripts, README and helpers/labels.py).

    SOURCE/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    SOURCE/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png
    SOURCE/gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinview.data.formats.decode import label_map
from twinview.data.formats.fields import MAP_FIELD
from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.common import keyed, label_maps, partners_of, split_of, table
from twinview.data.prepare.layouts.objects import of_instances, sample_json
from twinview.data.prepare.layouts.partners import spare_maps, visible
from twinview.data.store.listing import folder, image_field, images
from twinview.data.store.regular import read_regular
from twinview.data.writing.entry import Content, Entry, Relabeled
from twinview.errors import DataError

NAMES = {  # the official numbers, `labelIds`
    0: "unlabeled", 1: "ego vehicle", 2: "rectification border", 3: "out of roi", 4: "static", 5: "dynamic", 6: "ground", 7: "road", 8: "sidewalk",
    9: "parking", 10: "rail track", 11: "building", 12: "wall", 13: "fence", 14: "guard rail", 15: "bridge", 16: "tunnel", 17: "pole",
    18: "polegroup", 19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car",
    27: "truck", 28: "bus", 29: "caravan", 30: "trailer", 31: "train", 32: "motorcycle", 33: "bicycle",
}
SCORED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # the benchmark's classes, in the order of their `trainIds`
KEPT = {19: SCORED, 27: tuple(range(7, 34)), 34: tuple(range(34))}  # 27: what PiCIE (CVPR 2021) and those after it cluster
COUNTED = (24, 25, 26, 27, 28, 31, 32, 33)  # labels whose instances the benchmark scores
BARE = ("test", "train_extra")  # their fine labels say nothing, or are none


def find(source: str | Path, split: str = "train", classes: int = 19, objects: bool = False) -> Found:
    """Every image of a split by city, with its label map where the split has fine ones; a sample's key is CITY/CITY_SEQUENCE_FRAME.

    `classes`: 19 that the benchmark scores, 27 (all from `road` on) or 34 (the official numbers as they are); 255 for all others.
    `objects`: with the instances of eight classes as the field `json`, boxes and masks; the id of a category is its official number.
    """
    if classes not in KEPT:
        raise DataError(f"classes: Cityscapes is packed with 19, 27 or 34 classes, not {classes}.")
    left = folder(Path(source) / "leftImg8bit", "of Cityscapes' images")
    split_of(split, {path.name for path in visible(left.iterdir()) if path.is_dir()})
    paths, others = images(left / split)
    numbers = table({one: n for n, one in enumerate(KEPT[classes])})
    fine = Path(source) / "gtFine" / split
    bare = split in BARE
    drawn = {} if bare else label_maps(paths, lambda path: fine / path.parent.name / f"{path.stem.removesuffix('_leftImg8bit')}_gtFine_labelIds.png")
    spare = Counter[str]() if bare else spare_maps(fine, "*/*_gtFine_labelIds.png", drawn.values())

    if objects and bare:
        raise DataError(f"objects: {split} has no instances. Pack train or val with them.")
    places = {path: label.with_name(label.name.replace("_labelIds", "_instanceIds")) for path, label in drawn.items()}
    counted = partners_of(paths, places.__getitem__, "instances") if objects else {}
    keys = keyed(left / split, paths, lambda key: key.removesuffix("_leftImg8bit"))

    def entries() -> Iterator[Entry]:
        for key, path in keys.items():
            fields: dict[str, Content] = {image_field(path): path}
            if not bare:
                fields[MAP_FIELD] = drawn[path] if classes == 34 else Relabeled(drawn[path], numbers)
            if objects:
                fields["json"] = _instances(counted[path])
            yield Entry(key, fields)

    metadata: dict[str, Any] = {} if bare else {"classes": [NAMES[n] for n in KEPT[classes]]}
    if objects:
        metadata["categories"] = {str(n): NAMES[n] for n in COUNTED}
    return Found(entries=entries() if objects else [*entries()], total=len(keys), metadata=metadata, passed_over=others, unmatched=spare)


def _instances(path: Path) -> bytes:
    try:
        numbers = label_map(read_regular(path, None)).numpy()
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read: {e}.") from None
    return sample_json(numbers.shape[1], numbers.shape[0], of_instances(numbers, COUNTED))
