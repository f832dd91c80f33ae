"""COCO: images with their instance annotations (cocodataset.org, "Download" and "Data format").

    SOURCE/train2017/000000000009.jpg
    SOURCE/annotations/instances_train2017.json
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.common import json_bytes, keyed, names_of, read_json, split_of
from twinview.data.store.listing import folder, image_field, images
from twinview.data.writing.entry import Entry
from twinview.errors import DataError


def find(source: str | Path, split: str = "train2017") -> Found:
    """Every image of a split, by file name; without annotations (test2017, unlabeled2017) images alone.

    The field `json` has what the annotations say of the image: `image` (its width and height, which boxes count in, among others) and `annotations`.
    """
    root = folder(Path(source), "of COCO")
    split_of(split, {path.name for path in root.iterdir() if path.is_dir() and path.name != "annotations"})
    annotations = root / "annotations" / f"instances_{split}.json"
    return annotated(root / split, annotations) if annotations.is_file() else bare(root / split)


def bare(pictures: Path) -> Found:
    """The images of a folder, by name."""
    paths, others = images(pictures)
    entries = [Entry(key, {image_field(path): path}) for key, path in keyed(pictures, paths).items()]
    return Found(entries=entries, total=len(entries), passed_over=others)


def annotated(pictures: Path, annotations: Path) -> Found:
    """The images that an annotation file of COCO's format lists, by name, each with its part of that file."""
    said = read_json(annotations, "images", "annotations", "categories")
    try:
        listed: dict[Path, dict[str, Any]] = {pictures / one["file_name"]: one for one in said["images"]}
        drawn = defaultdict[int, list[dict[str, Any]]](list)
        for one in said["annotations"]:
            drawn[one["image_id"]].append(one)
        categories = names_of(said["categories"])
    except (KeyError, TypeError) as e:
        raise DataError(f"{annotations}: is not of COCO's format: {type(e).__name__}: {e}.") from None
    paths = keyed(pictures, sorted(listed))

    def entries() -> Iterator[Entry]:
        for key, path in paths.items():
            image = listed[path]
            yield Entry(key, {image_field(path): path, "json": json_bytes({"image": image, "annotations": drawn.get(image["id"], [])})})

    return Found(entries=entries(), total=len(paths), metadata={"categories": categories})
