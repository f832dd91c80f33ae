"""COCO: images with their instance annotations (cocodataset.org, "Download" and "Data format").

    SOURCE/train2017/000000000009.jpg
    SOURCE/annotations/instances_train2017.json

Other tools write the format too: Roboflow beside the images (SPLIT/_annotations.coco.json), CVAT and Label Studio as `--annotations` says.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.common import json_bytes, keyed, read_json, split_of
from twinview.data.prepare.layouts.partners import Catalog
from twinview.data.store.listing import folder, image_field, images
from twinview.data.writing.entry import Entry
from twinview.errors import DataError


def find(source: str | Path, split: str = "train2017", annotations: str | Path | None = None) -> Found:
    """Every image of a split that its annotation file lists, by file name; without such a file (test2017, unlabeled2017) every image.

    The field `json` has what the annotations say of the image: `image` (its width and height, which boxes count in, among others) and `annotations`.
    `annotations`: a file of another name.
    """
    root = folder(Path(source), "of COCO")
    split_of(split, {path.name for path in root.iterdir() if path.is_dir() and path.name != "annotations" and not path.name.startswith(".")})
    if annotations is not None and not Path(annotations).is_file():
        raise DataError(f"annotations: there is no file {annotations}.")
    places = [Path(annotations)] if annotations else [root / "annotations" / f"instances_{split}.json", root / split / "_annotations.coco.json"]
    place = next((path for path in places if path.is_file()), None)
    return annotated(root / split, place) if place else bare(root / split)


def bare(pictures: Path) -> Found:
    """The images of a folder, by name."""
    paths, others = images(pictures)
    entries = [Entry(key, {image_field(path): path}) for key, path in keyed(pictures, paths).items()]
    return Found(entries=entries, total=len(entries), passed_over=others)


def annotated(pictures: Path, annotations: Path, said: Mapping[str, Any] | None = None, below: Sequence[str] = ()) -> Found:
    """The images that an annotation file of COCO's format lists, by name, each with its part of that file.

    `said`: its content, where it was read already; `below`: folders of `pictures` that hold the images, where others beside them do not.
    """
    files, others = _images(pictures, below)
    found = Catalog(pictures, files, read_json(annotations, "images") if said is None else said, annotations)
    paths = keyed(pictures, sorted(found.images))

    def entries() -> Iterator[Entry]:
        for key, path in paths.items():
            said = {"image": found.images[path], "annotations": found.annotations[path]}
            yield Entry(key, {image_field(path): path, "json": json_bytes(said)})

    metadata = {"categories": found.categories}
    return Found(entries=entries(), total=len(paths), metadata=metadata, passed_over=others, unmatched=found.unmatched)


def _images(pictures: Path, below: Sequence[str]) -> tuple[list[Path], Counter[str]]:
    if not below:
        return images(pictures)
    parts = [images(pictures / name) for name in below]
    return [path for paths, _ in parts for path in paths], sum((others for _, others in parts), Counter[str]())
