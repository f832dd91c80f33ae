"""PASCAL VOC (host.robots.ox.ac.uk/pascal/VOC, the development kit's documentation).

    SOURCE/JPEGImages/2007_000032.jpg           (SOURCE is VOCdevkit/VOC2012, for example)
    SOURCE/SegmentationClass/2007_000032.png    (0 background, 1..20 the classes in alphabetical order, 255 borders and difficult objects)
    SOURCE/Annotations/2007_000032.xml          (boxes)
    SOURCE/ImageSets/Segmentation/train.txt     SOURCE/ImageSets/Main/trainval.txt
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinview.data.formats.fields import MAP_FIELD
from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.common import keyed, label_maps, partners_of, read_lines, split_of
from twinview.data.prepare.layouts.objects import of_voc
from twinview.data.prepare.layouts.partners import visible
from twinview.data.store.listing import folder
from twinview.data.store.regular import read_regular
from twinview.data.writing.entry import Content, Entry

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)


def find(source: str | Path, split: str = "Segmentation/train", objects: bool = False) -> Found:
    """The images that ImageSets/SPLIT.txt lists, in its order: Segmentation/val with label maps, Main/trainval and others without.

    `objects`: with the boxes of Annotations/ as the field `json`, categories 1 to 20 in the order of CLASSES.
    """
    root = folder(Path(source), "of VOC")
    sets = folder(root / "ImageSets", "of VOC's lists")
    split_of(split, {path.relative_to(sets).with_suffix("").as_posix() for path in visible(sets.glob("*/*.txt"))})
    lines = read_lines(sets / f"{split}.txt")  # those of Layout and Action name an image for each of its people
    paths = [root / "JPEGImages" / f"{name}.jpg" for name in dict.fromkeys(lines)]
    labeled = split.startswith("Segmentation/") and not split.endswith("/test")
    drawn = label_maps(paths, lambda path: root / "SegmentationClass" / f"{path.stem}.png") if labeled else {}

    boxes = partners_of(paths, lambda path: root / "Annotations" / f"{path.stem}.xml", "annotations") if objects else {}
    ids = {name: n for n, name in enumerate(CLASSES) if n}
    keys = keyed(root / "JPEGImages", paths)

    def entries() -> Iterator[Entry]:
        for key, path in keys.items():
            fields: dict[str, Content] = {"jpg": path, MAP_FIELD: drawn[path]} if labeled else {"jpg": path}
            yield Entry(key, {**fields, "json": of_voc(read_regular(boxes[path], None), ids, boxes[path])} if objects else fields)

    unmatched = Counter({"lines that name an image again": len(lines) - len(paths)})
    if labeled:
        pictures = {path.stem for path in visible((root / "JPEGImages").glob("*"))}
        unmatched["label maps without an image"] = sum(path.stem not in pictures for path in visible((root / "SegmentationClass").glob("*.png")))
    metadata: dict[str, Any] = {"classes": list(CLASSES)} if labeled else {}
    if objects:
        metadata["categories"] = {str(n): name for name, n in ids.items()}
    return Found(entries=entries() if objects else [*entries()], total=len(keys), metadata=metadata, unmatched=unmatched)
