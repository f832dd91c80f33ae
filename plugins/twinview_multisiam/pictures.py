"""Pictures of clusters."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.pictures import from_picture, photograph, to_picture
from twinview.ops.sheet import FRAMES, Cell, Entry, palette, sheet
from twinview.values import Batch, Geometry, cell_centers

IMAGES, HEIGHT = 8, 190  # rows, and pixels of a picture
TINT = 0.55  # of a cluster's color over the picture
CAPTION = (
    "Each image is clustered by itself. A color stands for one cluster within a row: the second view's clusters have the colors of those of the "
    "first that they overlap most with, where both views show the same place. Clusters are numbered from the top of the first view."
)


def cluster_sheet(batch: Batch, clusters: Mapping[int, Tensor], k: int) -> Tensor:
    """[3, H, W] uint8, a row for each image: every view of `clusters`, and beside it its cells [B, h, w] in their clusters' colors.

    The yellow frame on a view holds what the other view shows of it.
    """
    colors = torch.tensor(palette(k), dtype=torch.uint8)
    headings = [heading for view in clusters for heading in (f"view {view + 1}", f"view {view + 1}, clusters")]
    rows = []
    for row in range(min(IMAGES, len(batch.keys))):
        cells = list[Cell]()
        for view, numbers in numbered(batch.geometry, {view: found[row].cpu() for view, found in clusters.items()}, row, k).items():
            image = photograph(batch.images[view][row].cpu())
            zoom = -(-HEIGHT // image.shape[1])
            image = image.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
            plain = to_picture(image)
            outline(plain, batch.geometry, row, view)
            cells += [Cell(plain, batch.keys[row]), Cell(tint(image, colors[numbers]))]
        rows.append(cells)
    legend = [Entry(tuple(color), f"cluster {n + 1}") for n, color in enumerate(colors.tolist())]
    legend.append(Entry(FRAMES["yellow"], "what the other view shows", "frame"))
    return from_picture(sheet(rows, headings=headings, legend=legend, caption=CAPTION, height=HEIGHT, nearest=True))


def numbered(geometry: Geometry, clusters: Mapping[int, Tensor], row: int, k: int) -> dict[int, Tensor]:
    """Clusters [h, w] of each view of an image, numbered alike in all: those of the first from the top, those of others by what they overlap with."""
    own = geometry._replace(boxes=geometry.boxes[row].cpu(), flips=geometry.flips[row].cpu())
    first = next(iter(clusters))
    found = {first: by_height(clusters[first], k)}
    for view, cells in clusters.items():
        if view != first:
            found[view] = matched(own, found[first], first, cells, view, k)[cells]
    return found


def matched(geometry: Geometry, there: Tensor, first: int, cells: Tensor, view: int, k: int) -> Tensor:
    """[k]: for each cluster of a view the one of the `first` view's, clusters `there` [h, w], that shares most places with it, each once."""
    from scipy.optimize import linear_sum_assignment

    places = geometry.to_view(geometry.to_source(cell_centers((cells.shape[0], cells.shape[1])), view), first)
    inside = ((places >= 0) & (places < 1)).all(-1)
    x, y = (places[inside] * torch.tensor([there.shape[1], there.shape[0]])).long().unbind(-1)
    shared = torch.zeros(k, k).index_put_((cells.flatten()[inside], there[y, x]), torch.ones(()), accumulate=True)
    own, others = linear_sum_assignment(-shared.numpy())
    numbers = torch.empty(k, dtype=torch.int64)
    numbers[torch.from_numpy(own)] = torch.from_numpy(others)
    return numbers


def by_height(cells: Tensor, k: int) -> Tensor:
    """Clusters [h, w] numbered anew from the top of the picture to its bottom, so that rows of a sheet share their colors."""
    y = torch.arange(len(cells), dtype=torch.float32)[:, None].expand(cells.shape)
    member = F.one_hot(cells.flatten(), k).float()
    middle = (member * y.flatten()[:, None]).sum(0) / member.sum(0)  # NaN, which sorts last, for an empty cluster
    return middle.argsort().argsort()[cells]


def tint(image: Tensor, colors: Tensor) -> Tensor:
    """Lay colors [h, w, 3] of cells over an image [3, H, W] uint8, in grey below."""
    full = F.interpolate(colors.movedim(2, 0)[None].float(), image.shape[1:], mode="nearest")[0]
    return (TINT * full + (1 - TINT) * image.float().mean(0)).round().byte()


def outline(picture: Image.Image, geometry: Geometry, row: int, view: int) -> None:
    """Draw the frame of what the other view of a pair shows of `view`, if it shows any of it."""
    own = geometry._replace(boxes=geometry.boxes[row].cpu(), flips=geometry.flips[row].cpu())
    other = next(a if b == view else b for a, b in geometry.pairs if view in (a, b))
    if own.iou(view, other) == 0:
        return
    corners = own.to_view(own.overlap(view, other).view(2, 2), view).numpy()
    low = corners.min(0) * picture.size
    high = np.maximum(corners.max(0) * picture.size - 1, low)  # what is seen may be narrower than a pixel
    ImageDraw.Draw(picture).rectangle((*low, *high), outline=FRAMES["yellow"], width=max(2, picture.width // 80))
