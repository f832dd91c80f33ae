"""BDD100K: driving images (doc.bdd100k.com, "Download" and "Label format").

    SOURCE/images/100k/train/0000f77c-6257be58.jpg      SOURCE/images/10k/train/0004a4c0-d4dff0ad.jpg
    SOURCE/labels/sem_seg/masks/train/0004a4c0-d4dff0ad.png     (of the 10k images; 0..18 as Cityscapes' trainIds, 255 unknown)
    (the masks of the first release are called 0004a4c0-d4dff0ad_train_id.png)
    SOURCE/labels/det_20/det_train.json         (boxes of the 100k images, in Scalabel's format)
    SOURCE/labels/ins_seg/rles/ins_seg_train.json       (masks of the 10k images, as run lengths)
"""
from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from twinview.data.formats.fields import MAP_FIELD
from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.cityscapes import NAMES, SCORED
from twinview.data.prepare.layouts.common import keyed, label_maps, read_frames, split_of
from twinview.data.prepare.layouts.objects import Annotation, of_scalabel, sample_json
from twinview.data.prepare.layouts.partners import spare_maps, visible
from twinview.data.store.listing import folder, image_field, images
from twinview.data.writing.entry import Content, Entry

CATEGORIES = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "traffic light", "traffic sign")  # 1 to 10
SIZE = 1280, 720  # width, height of every image


def find(source: str | Path, split: str = "100k/train", objects: bool = False) -> Found:
    """Every image of a split, 100k/train or 10k/val for example; those of 10k with their label maps where the masks of the split are there.

    `objects`: with the boxes of det_20 (100k) or the masks of ins_seg (10k) as the field `json`; images that the file does not list have no object.
    """
    root = folder(Path(source) / "images", "of BDD100K's images")
    split_of(split, {path.relative_to(root).as_posix() for path in visible(root.glob("*/*")) if path.is_dir()})
    paths, others = images(root / split)
    package, _, part = split.partition("/")
    masks = Path(source) / "labels" / "sem_seg" / "masks" / part
    labeled = package == "10k" and masks.is_dir()
    old = labeled and next(visible(masks.glob("*_train_id.png")), None) is not None
    drawn = label_maps(paths, lambda path: masks / f"{path.stem}{'_train_id' if old else ''}.png") if labeled else {}
    spare = spare_maps(masks, "*.png", drawn.values()) if labeled else Counter[str]()
    keys = keyed(root / split, paths)
    boxes = _objects(Path(source) / "labels", package, part) if objects else {}
    names = {path.name for path in paths}
    spare["annotations of images that are not there"] = sum(name not in names for name in boxes)
    entries = []
    for key, path in keys.items():
        fields: dict[str, Content] = {image_field(path): path, **({MAP_FIELD: drawn[path]} if labeled else {})}
        entries.append(Entry(key, {**fields, **({"json": sample_json(*SIZE, boxes.get(path.name, []))} if objects else {})}))
    metadata: dict[str, Any] = {"classes": [NAMES[n] for n in SCORED]} if labeled else {}
    if objects:
        metadata["categories"] = {str(n): name for n, name in enumerate(CATEGORIES, start=1)}
    return Found(entries=entries, total=len(entries), metadata=metadata, passed_over=others, unmatched=spare)


def _objects(labels: Path, package: str, part: str) -> dict[str, list[Annotation]]:
    """Annotations by the images' names.  Raises DataError."""
    file = f"det_20/det_{part}.json" if package == "100k" else f"ins_seg/rles/ins_seg_{part}.json"
    frames = read_frames(labels / file)
    ids = {name: n for n, name in enumerate(CATEGORIES, start=1)}
    return {str(frame.get("name")): of_scalabel(frame.get("labels") or [], ids, f"{labels / file}: {frame.get('name')}") for frame in frames}
