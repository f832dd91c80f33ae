"""Annotations of objects, as COCO's format has them for an image: what other data sets say, as the field `json` of a sample."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from twinview.data.prepare.layouts.common import json_bytes
from twinview.errors import DataError

Annotation = dict[str, Any]


def sample_json(width: int, height: int, annotations: Sequence[Annotation]) -> bytes:
    """The field `json`: `image` with the size that boxes count in, and `annotations`, numbered from 1."""
    numbered = [{"id": n, "iscrowd": 0, **one} for n, one in enumerate(annotations, start=1)]
    return json_bytes({"image": {"width": width, "height": height}, "annotations": numbered})


def box(category: int, x0: float, y0: float, x1: float, y1: float) -> Annotation:
    """Edges in pixels, the right and the lower one beyond the last pixel."""
    return {"category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}


def of_mask(category: int, mask: NDArray[np.bool_]) -> Annotation:
    """A mask [H, W] that is somewhere true, with COCO's run lengths: column by column, beginning with what lies outside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    found = box(category, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    flat = np.concatenate([[False], mask.T.ravel()])
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), mask.size)
    counts = np.diff(ends, prepend=0).tolist()
    return {**found, "area": int(mask.sum()), "segmentation": {"size": [*mask.shape], "counts": counts}}


def of_voc(text: bytes, ids: Mapping[str, int], place: object) -> bytes:
    """An image's XML file of PASCAL VOC: pixels counted from 1, the last one within the box; difficult objects are crowds, which no score counts.

    Raises DataError.
    """
    try:
        root = ElementTree.fromstring(text)
        width, height = (int(_text(root, f"size/{side}")) for side in ("width", "height"))
        found = []
        for one in root.iter("object"):
            x0, y0, x1, y1 = (float(_text(one, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax"))
            crowd = int((one.findtext("difficult") or "0").strip() == "1")
            found.append({**box(ids[_text(one, "name")], x0 - 1, y0 - 1, x1, y1), "iscrowd": crowd})
    except (ElementTree.ParseError, ValueError) as e:
        raise DataError(f"{place}: is no annotation of VOC: {e}.") from None
    except KeyError as e:
        raise DataError(f"{place}: has an object of the class {e}. There is: {', '.join(ids)}.") from None
    return sample_json(width, height, found)


def of_scalabel(labels: Sequence[Mapping[str, Any]], ids: Mapping[str, int], place: object) -> list[Annotation]:
    """An image's labels in Scalabel's format (BDD100K): boxes whose last pixel is within them, run lengths where there are; others are left out.

    Raises DataError for a box that is none.
    """
    found = []
    for one in labels:
        edges, category = one.get("box2d"), ids.get(str(one.get("category")))
        if edges is None or category is None:
            continue
        try:
            x0, y0, x1, y1 = (float(edges[edge]) for edge in ("x1", "y1", "x2", "y2"))
        except (KeyError, TypeError, ValueError) as e:
            raise DataError(f"{place}: has a box2d that is none: {type(e).__name__}: {e}.") from None
        said = one.get("attributes") or {}
        made = {**box(category, x0, y0, x1 + 1, y1 + 1), "iscrowd": int(bool(said.get("crowd") or said.get("Crowd")))}
        found.append({**made, "segmentation": dict(one["rle"])} if isinstance(one.get("rle"), Mapping) else made)
    return found


def of_instances(numbers: NDArray[Any], labels: Sequence[int]) -> list[Annotation]:
    """Cityscapes' instanceIds [H, W]: label x 1000 + n is an instance, the label alone a group of them, which is a crowd.

    Of the `labels` that count; a category's id is its label.
    """
    found = []
    for number in np.unique(numbers).tolist():
        label = number // 1000 if number >= 1000 else number
        if label in labels:
            found.append({**of_mask(label, numbers == number), "iscrowd": int(number < 1000)})
    return found


def _text(node: ElementTree.Element, path: str) -> str:
    """Raises ValueError where there is none."""
    found = node.findtext(path)
    if found is None or not found.strip():
        raise ValueError(f"{path} is missing")
    return found.strip()
