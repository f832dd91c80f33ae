"""Label maps and objects as the views see them: cut, resized and mirrored with the pixels."""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from twinview.data.dataset.base import Samples
from twinview.data.dataset.read import bad_sample, read_annotations, read_map
from twinview.data.formats.decode import resize_map
from twinview.errors import DataError
from twinview.values import Geometry, Size

LEAST = 1.0  # pixels of a side: what is smaller in a view is not in it
OUTSIDE = 1.0  # pixels by which a box may reach beyond its image, as roundings of annotation tools do


def view_labels(shards: Samples, i: int, size: Size, geometry: Geometry, wants: Collection[str]) -> dict[str, Tensor]:
    """What parts want of sample `i`, an image of `size`, for each of its views v.

    `label_maps`: `map/v` [h, w] int64.  `objects`: `objects/v/boxes` [M, 4] float32 x0 y0 x1 y1 in the view's pixels, `objects/v/classes` [M] int64
    (category ids), `objects/v/crowd` [M] bool, `objects/v/masks` [M, h, w] bool.  Raises DataError where the sample has none, or they do not fit it.
    """
    found: dict[str, Tensor] = {}
    if "label_maps" in wants:
        labels = read_map(shards, i)
        if labels.shape != size:
            sizes = f"its label map is {tuple(labels.shape)} pixels (height, width), its image {size}"
            raise DataError(f"{bad_sample(shards, i, sizes)}.")
        for view in range(len(geometry.sizes)):
            found[f"map/{view}"] = cut_map(labels, geometry, view)
    if "objects" in wants:
        objects = [_checked(one, size, shards, i) for one in read_annotations(shards, i)]
        for view in range(len(geometry.sizes)):
            found |= {f"objects/{view}/{name}": value for name, value in _objects(objects, size, geometry, view, shards, i).items()}
    return found


def cut_map(labels: Tensor, geometry: Geometry, view: int) -> Tensor:
    """A map [H, W] of the source as a view of it sees it, nearest neighbors: [h, w]."""
    height, width = labels.shape
    x0, y0, x1, y1 = (n * side for n, side in zip(geometry.boxes[view].tolist(), (width, height, width, height)))
    left, top = min(max(round(x0), 0), width - 1), min(max(round(y0), 0), height - 1)
    right, bottom = min(max(round(x1), left + 1), width), min(max(round(y1), top + 1), height)
    found = resize_map(labels[top:bottom, left:right], geometry.sizes[view])
    return found.flip(-1) if bool(geometry.flips[view]) else found


def stacked_labels(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Labels of a batch, [B, ...]; of objects as many as the image with the most has: others are filled up with class -1."""
    found = {}
    for name in items[0]:
        values = [item[name] for item in items]
        if name.startswith("objects/"):
            most = max(len(value) for value in values)
            values = [torch.cat([v, v.new_full((most - len(v), *v.shape[1:]), -1 if name.endswith("classes") else 0)]) for v in values]
        found[name] = torch.stack(values)
    return found


def _checked(one: Mapping[str, Any], size: Size, shards: Samples, i: int) -> dict[str, Any]:
    """An annotation with its box as corners.  Raises DataError for a box that is none, or lies outside of the image."""
    try:
        x, y, w, h = (float(n) for n in one["bbox"])
        category = int(one["category_id"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{bad_sample(shards, i, 'has an annotation without bbox = [x, y, width, height] and category_id')}.") from None
    height, width = size
    if w < 0 or h < 0 or min(x, y) < -OUTSIDE or x + w > width + OUTSIDE or y + h > height + OUTSIDE:
        box = f"has a box [{x:g}, {y:g}, {w:g}, {h:g}] (x, y, width, height) outside of its image of {width}x{height}"
        raise DataError(f"{bad_sample(shards, i, box)}. Were images shrunk without their annotations?")
    return {**one, "corners": (x, y, x + w, y + h), "category_id": category}


def _objects(
    objects: Sequence[Mapping[str, Any]], size: Size, geometry: Geometry, view: int, shards: Samples, i: int
) -> dict[str, Tensor]:
    height, width = size
    h, w = geometry.sizes[view]
    scale = torch.tensor([w, h], dtype=torch.float32)
    boxes, classes, crowd, masks = [], [], [], []
    for one in objects:
        corners = torch.tensor(one["corners"]).view(2, 2) / torch.tensor([width, height])
        places = geometry.to_view(corners, view) * scale
        low, high = places.amin(0).clamp(min=0), torch.minimum(places.amax(0), scale)
        if bool((high - low < LEAST).any()):
            continue
        boxes.append(torch.cat([low, high]))
        classes.append(one["category_id"])
        crowd.append(bool(one.get("iscrowd", 0)))
        masks.append(_mask(one.get("segmentation"), torch.cat([low, high]), size, geometry, view, shards, i))
    return {
        "boxes": torch.stack(boxes) if boxes else torch.zeros(0, 4),
        "classes": torch.tensor(classes, dtype=torch.int64),
        "crowd": torch.tensor(crowd, dtype=torch.bool),
        "masks": torch.stack(masks) if masks else torch.zeros(0, h, w, dtype=torch.bool),
    }


def _mask(shape: Any, box: Tensor, size: Size, geometry: Geometry, view: int, shards: Samples, i: int) -> Tensor:
    """[h, w] bool of polygons or of run lengths; without either the box."""
    h, w = geometry.sizes[view]
    if isinstance(shape, Mapping):
        return cut_map(_run_lengths(shape, size, shards, i), geometry, view).bool()
    picture = Image.new("1", (w, h))
    draw = ImageDraw.Draw(picture)
    polygons = [flat for flat in shape or () if isinstance(flat, Sequence) and len(flat) >= 6]
    if not polygons:
        x0, y0, x1, y1 = box.round().long().tolist()
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=1)
    for flat in polygons:
        points = torch.tensor(flat[: len(flat) // 2 * 2], dtype=torch.float32).view(-1, 2) / torch.tensor([size[1], size[0]])
        draw.polygon([(float(x), float(y)) for x, y in geometry.to_view(points, view) * torch.tensor([w, h])], fill=1)
    return torch.from_numpy(np.array(picture))


def _run_lengths(shape: Mapping[str, Any], size: Size, shards: Samples, i: int) -> Tensor:
    """COCO's run lengths, column by column, beginning with what lies outside; packed ones want pycocotools."""
    counts = shape.get("counts")
    if isinstance(counts, str):
        try:
            from pycocotools import mask
        except ImportError:
            packed = bad_sample(shards, i, "has packed run lengths")
            raise DataError(f"{packed}, which pycocotools reads: pip install 'twinview[detection]'.") from None
        return torch.from_numpy(mask.decode({"size": list(size), "counts": counts.encode()}).astype(np.int64))
    runs = np.asarray(counts if counts is not None else [], dtype=np.int64)
    if runs.ndim != 1 or runs.sum() != size[0] * size[1] or (runs < 0).any():
        raise DataError(f"{bad_sample(shards, i, 'has run lengths of another size than its image')}.")
    return torch.from_numpy(np.repeat(np.arange(len(runs)) % 2, runs).reshape(size[1], size[0]).T.copy())
