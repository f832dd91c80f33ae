"""LVIS: COCO's images with annotations of 1,203 classes (lvisdataset.org, "Dataset", v1).

    SOURCE/train2017/000000391895.jpg       SOURCE/val2017/...      (a split's images lie in both)
    SOURCE/annotations/lvis_v1_train.json   (or SOURCE/lvis_v1_train.json)
"""
from __future__ import annotations

from pathlib import Path

from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.coco import annotated
from twinview.data.prepare.layouts.common import read_json, split_of
from twinview.data.prepare.layouts.partners import visible
from twinview.data.store.listing import folder
from twinview.errors import DataError

FOLDERS = ("train2017", "val2017")


def find(source: str | Path, split: str = "train") -> Found:
    """Every image that lvis_v1_SPLIT.json lists, key train2017/000000391895, with the field `json` as COCO's have it.

    `image` keeps `neg_category_ids` and `not_exhaustive_category_ids`, which LVIS' own score needs.
    """
    root = folder(Path(source), "of LVIS")
    files = {path.stem.removeprefix("lvis_v1_"): path for place in (root, root / "annotations") for path in visible(place.glob("lvis_v1_*.json"))}
    place = files[split_of(split, files)]
    said = read_json(place, "images")
    for one in said["images"] if isinstance(said["images"], list) else []:
        if isinstance(one, dict) and "file_name" not in one:
            if not isinstance(one.get("coco_url"), str):
                raise DataError(f"{place}: is not of LVIS' format: an image has neither coco_url nor file_name.")
            one["file_name"] = "/".join(one["coco_url"].split("/")[-2:])
    return annotated(root, place, said, [name for name in FOLDERS if (root / name).is_dir()])
