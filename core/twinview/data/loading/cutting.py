"""Where views are cut from, in whole pixels, and the cutting."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinview.data.formats import decode
from twinview.data.loading.item import Cut
from twinview.errors import PluginError
from twinview.values import Dims, Geometry


def on_pixels(geometry: Geometry, height: int, width: int, unit: int = 1) -> tuple[Geometry, list[list[int]]]:
    """Round boxes to whole pixels of the source, at least one: what is cut is what Geometry says.  Gives x0 y0 x1 y1 in pixels too.

    Of a source decoded with `unit` x `unit` pixels in one, these are the pixels; what is left of a side at its end is not cut.
    """
    pixels, columns, rows = [], width // unit, height // unit
    for left, top, right, bottom in geometry.boxes.tolist():  # a few numbers: sooner done without arrays
        x0, y0 = min(max(round(left * width / unit), 0), columns - 1), min(max(round(top * height / unit), 0), rows - 1)
        x1, y1 = min(max(round(right * width / unit), x0 + 1), columns), min(max(round(bottom * height / unit), y0 + 1), rows)
        pixels.append([x0, y0, x1, y1])
    boxes = np.array(pixels) * unit / (width, height, width, height)
    return geometry._replace(boxes=torch.from_numpy(boxes.astype(np.float32)), source=torch.tensor([height, width])), pixels


def on_pixels_batch(boxes: NDArray[Any], sizes: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`on_pixels` of boxes [B, V, 4] in images of `sizes` [B, 2]: the same boxes, and x0 y0 x1 y1 in pixels."""
    sides = sizes[:, None, ::-1]  # width, height
    corners = np.rint(boxes.astype(np.float64) * np.concatenate([sides, sides], 2)).astype(np.int64)
    low = corners[:, :, :2].clip(0, sides - 1)
    high = corners[:, :, 2:].clip(low + 1, sides)
    pixels = np.concatenate([low, high], 2)
    return (pixels / np.concatenate([sides, sides], 2)).astype(np.float32), pixels


def fixed(given: Geometry | Dims) -> tuple[Any, ...]:
    """What is the same for every image."""
    return given.sizes, given.pairs, given.draws, given.cut_from, given.sets


def check_fixed(geometry: Geometry, dims: Dims, size: Sequence[int], use: str) -> None:
    """Raises PluginError where the views of an image of `size` (height, width) are others than the first image's; `use`: the part that gives them."""
    if fixed(geometry) != fixed(dims):
        said = f"gives other sizes, pairs, draws, cut_from or sets for an image of {size[0]}x{size[1]} than for the first"
        raise PluginError(f"[views] {use}: {said}. They are the same for every image.")


def sources(geometry: Geometry | Dims) -> tuple[int, ...]:
    """Of each view, the view that it is cut from: itself, where that is the source."""
    return geometry.cut_from or tuple(range(len(geometry.sizes)))


def on_views(geometry: Geometry, meant: Geometry) -> tuple[Geometry, dict[int, Cut]]:
    """Views that are cut out of others' pictures: their boxes rounded to whole pixels of these, at least one; what is cut is what Geometry says.

    `meant`: before `on_pixels` moved the views that they are cut from, which they keep to.
    """
    cuts, boxes = dict[int, Cut](), geometry.boxes.tolist()
    for view, source in enumerate(sources(geometry)):
        if source == view:
            continue
        (height, width), mirrored = geometry.sizes[source], bool(geometry.flips[source])
        corners = meant.to_view(meant.boxes[view].view(2, 2), source)
        (left, top), (right, bottom) = corners.amin(0).tolist(), corners.amax(0).tolist()
        x0, y0 = min(max(round(left * width), 0), width - 1), min(max(round(top * height), 0), height - 1)
        x1, y1 = min(max(round(right * width), x0 + 1), width), min(max(round(bottom * height), y0 + 1), height)
        places = geometry.to_source(torch.tensor([[x0 / width, y0 / height], [x1 / width, y1 / height]]), source)
        boxes[view] = [*places.amin(0).tolist(), *places.amax(0).tolist()]
        cuts[view] = Cut((x0, y0, x1, y1), bool(geometry.flips[view]) != mirrored)
    return (geometry._replace(boxes=torch.tensor(boxes)), cuts) if cuts else (geometry, cuts)


def cut_views(images: Sequence[Tensor], geometry: Geometry, cuts: Sequence[dict[int, Cut]]) -> tuple[Tensor, ...]:
    """The views [B, C, h, w] with those that are cut out of others; `cuts`: of each image."""
    found = list(images)
    for view, source in enumerate(sources(geometry)):
        if source != view:
            found[view] = stacked([cut(images[source][b], one[view].box, geometry.sizes[view], one[view].flip) for b, one in enumerate(cuts)])
    return tuple(found)


def cut(pixels: Tensor, box: Sequence[int], size: tuple[int, int], flip: bool) -> Tensor:
    """[C, H, W] -> [C, h, w] of the same type: the box x0 y0 x1 y1, resized with antialiasing, then mirrored."""
    x0, y0, x1, y1 = box
    view = decode.resize(pixels[:, y0:y1, x0:x1], size)
    return view.flip(-1) if flip else view


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Images [C, h, w] -> [B, C, h, w]; interleaved as they are, where all are."""
    if all(image.stride(0) == 1 for image in images):
        return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return torch.stack(tuple(images))
