"""The objects of images, from annotations, or from label maps: the connected pieces of classes that are countable."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from twinview.errors import DataError

Target = dict[str, Tensor]  # boxes [M, 4] x0 y0 x1 y1 in pixels, labels [M] from 1 on, masks [M, h, w] uint8, crowd [M] bool


@attrs.frozen(kw_only=True)
class Kinds:
    """What counts as an object, and of which class, counted from 0."""

    maps: bool  # objects are pieces of label maps, not annotations
    numbers: tuple[int, ...]  # labels of maps, or ids of categories, in the order of classes
    least: int  # pixels of a piece


def targets(labels: Mapping[str, Tensor], prefix: str, kinds: Kinds, place: str) -> list[Target]:
    """Objects of each image: `map/0` and `objects/0/...` of a batch of views where `prefix` is "/0", `map` and `objects/...` of whole images at "".

    Raises DataError for annotations of a category that `kinds` does not know.
    """
    if kinds.maps:
        return [pieces(one, kinds) for one in labels[f"map{prefix}"].cpu()]
    found = []
    start = f"objects{prefix}"
    for boxes, classes, crowd, masks in zip(*(labels[f"{start}/{name}"].cpu() for name in ("boxes", "classes", "crowd", "masks"))):
        known = torch.full_like(classes, -1)
        for n, number in enumerate(kinds.numbers):
            known[classes == number] = n
        real = classes >= 0  # images of a batch are filled up to as many objects
        strange = classes[real & (known < 0)]
        if len(strange):
            raise DataError(f"{place}: an annotation has category {int(strange[0])}, and categories are {list(kinds.numbers)}. Add it.")
        found.append({"boxes": boxes[real], "labels": known[real] + 1, "masks": masks[real].to(torch.uint8), "crowd": crowd[real]})
    return found


def pieces(labels: Tensor, kinds: Kinds) -> Target:
    """The connected pieces (8 neighbors) of each countable class of a label map [h, w], those of fewer than `least` pixels left out."""
    from scipy import ndimage

    numbers, found, masks = labels.numpy(), [], []
    for n, label in enumerate(kinds.numbers):
        marked, count = ndimage.label(numbers == label, structure=np.ones((3, 3)))
        for place, box in enumerate(ndimage.find_objects(marked, count), start=1):
            mask = marked[box] == place
            if mask.sum() >= kinds.least:
                rows, columns = box
                whole = np.zeros(numbers.shape, np.uint8)
                whole[box] = mask
                found.append((columns.start, rows.start, columns.stop, rows.stop, n + 1))
                masks.append(torch.from_numpy(whole))
    every = torch.tensor(found, dtype=torch.float32).view(-1, 5)
    return {
        "boxes": every[:, :4],
        "labels": every[:, 4].long(),
        "masks": torch.stack(masks) if masks else torch.zeros(0, *numbers.shape, dtype=torch.uint8),
        "crowd": torch.zeros(len(every), dtype=torch.bool),
    }


def for_training(found: list[Target], device: torch.device) -> list[dict[str, Any]]:
    """Without crowds, which teach nothing, and without boxes that have no area."""
    made = []
    for one in found:
        sides = one["boxes"][:, 2:] - one["boxes"][:, :2]
        kept = ~one["crowd"] & (sides > 0).all(1)
        made.append({name: one[name][kept].to(device) for name in ("boxes", "labels", "masks")})
    return made
