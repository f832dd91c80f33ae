"""PASCAL VOC (host.robots.ox.ac.uk/pascal/VOC, the development kit's documentation).

    SOURCE/JPEGImages/2007_000032.jpg           (SOURCE is VOCdevkit/VOC2012, for example)
    SOURCE/SegmentationClass/2007_000032.png    (0 background, 1..20 the classes in alphabetical order, 255 borders and difficult objects)
    SOURCE/ImageSets/Segmentation/train.txt     SOURCE/ImageSets/Main/trainval.txt
"""
from __future__ import annotations

from collections import Counter
from pathlib import Path

from twinview.data.formats.fields import MAP_FIELD
from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.common import keyed, label_maps, read_lines, split_of
from twinview.data.prepare.layouts.partners import visible
from twinview.data.store.listing import folder
from twinview.data.writing.entry import Content, Entry

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)


def find(source: str | Path, split: str = "Segmentation/train") -> Found:
    """The images that ImageSets/SPLIT.txt lists, in its order: Segmentation/val with label maps, Main/trainval and others without."""
    root = folder(Path(source), "of VOC")
    sets = folder(root / "ImageSets", "of VOC's lists")
    split_of(split, {path.relative_to(sets).with_suffix("").as_posix() for path in visible(sets.glob("*/*.txt"))})
    lines = read_lines(sets / f"{split}.txt")  # those of Layout and Action name an image for each of its people
    paths = [root / "JPEGImages" / f"{name}.jpg" for name in dict.fromkeys(lines)]
    labeled = split.startswith("Segmentation/") and not split.endswith("/test")
    drawn = label_maps(paths, lambda path: root / "SegmentationClass" / f"{path.stem}.png") if labeled else {}

    def fields(path: Path) -> dict[str, Content]:
        return {"jpg": path, MAP_FIELD: drawn[path]} if labeled else {"jpg": path}

    entries = [Entry(key, fields(path)) for key, path in keyed(root / "JPEGImages", paths).items()]
    unmatched = Counter({"lines that name an image again": len(lines) - len(paths)})
    if labeled:
        pictures = {path.stem for path in visible((root / "JPEGImages").glob("*"))}
        unmatched["label maps without an image"] = sum(path.stem not in pictures for path in visible((root / "SegmentationClass").glob("*.png")))
    return Found(entries=entries, total=len(entries), metadata={"classes": list(CLASSES)} if labeled else {}, unmatched=unmatched)
