"""SODA10M: ten million driving images, twenty thousand of them labeled (soda-2d.github.io, "Download" and "Documentation").

    SOURCE/unlabeled/.../*.jpg                     (SOURCE is the folder SSLAD-2D that the archives unpack to)
    SOURCE/labeled/train/HT_TRAIN_000001_SH_000.jpg
    SOURCE/labeled/annotations/instance_train.json  (COCO's format; some copies say instances_train.json)
"""
from __future__ import annotations

from pathlib import Path

from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.coco import annotated, bare
from twinview.data.prepare.layouts.common import split_of
from twinview.data.prepare.layouts.partners import visible
from twinview.data.store.listing import folder


def find(source: str | Path, split: str = "unlabeled") -> Found:
    """Every image of `unlabeled`, `train`, `val` or `test`, by name; the labeled ones with the field `json` as COCO's have it."""
    root = folder(Path(source), "of SODA10M")
    labeled = root / "labeled"
    known = {path.name for path in visible(labeled.glob("*")) if path.is_dir() and path.name != "annotations"}
    split_of(split, known | ({"unlabeled"} if (root / "unlabeled").is_dir() else set()))
    if split == "unlabeled":
        return bare(root / "unlabeled")
    places = [labeled / "annotations" / f"{word}_{split}.json" for word in ("instance", "instances")]
    place = next((path for path in places if path.is_file()), None)
    return annotated(labeled / split, place) if place else bare(labeled / split)
