"""Pictures of clusters."""
from __future__ import annotations

import colorsys
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.pictures import from_picture, photograph, to_picture
from twinview.values import Batch, Geometry

IMAGES, SIDE, GAP, TITLE = 8, 192, 4, 18  # rows; least pixels of a picture's side, between pictures, of the headings
TINT = 0.55  # of a cluster's colour over the picture


def cluster_sheet(batch: Batch, clusters: Mapping[int, Tensor], k: int) -> Tensor:
    """[3, H, W] uint8, a row for each image: every view of `clusters`, and beside it its cells [B, h, w] in their clusters' colours.

    The yellow frame on a view holds what the other view shows of it.
    """
    colors = palette(k)
    columns = [c for view in clusters for c in (f"view {view + 1}", f"clusters of view {view + 1}")]
    rows = min(IMAGES, len(batch.keys))
    zoom = -(-SIDE // max(max(batch.geometry.sizes[view]) for view in clusters))
    height, width = (zoom * max(batch.geometry.sizes[view][side] for view in clusters) for side in (0, 1))
    sheet = Image.new("RGB", (len(columns) * (width + GAP) - GAP, TITLE + rows * (height + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((column * (width + GAP) + 2, 3), title, fill="black")
    for row in range(rows):
        for place, (view, cells) in enumerate(clusters.items()):
            image = photograph(batch.images[view][row].cpu()).repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
            plain, tinted = to_picture(image), to_picture(tint(image, colors[by_height(cells[row].cpu(), k)]))
            outline(plain, batch.geometry, row, view)
            for column, picture in ((2 * place, plain), (2 * place + 1, tinted)):
                sheet.paste(picture, (column * (width + GAP), TITLE + row * (height + GAP)))
    return from_picture(sheet)


def palette(k: int) -> Tensor:
    """[k, 3] uint8: colours whose hues lie far apart."""
    rgb = [colorsys.hsv_to_rgb((0.58 + i * 0.381966) % 1, 0.85 if i % 2 else 0.65, 1.0 if i % 2 else 0.85) for i in range(k)]
    return (torch.tensor(rgb) * 255).round().byte()


def by_height(cells: Tensor, k: int) -> Tensor:
    """Clusters [h, w] numbered anew from the top of the picture to its bottom, so that rows of a sheet share their colours."""
    y = torch.arange(len(cells), dtype=torch.float32)[:, None].expand(cells.shape)
    member = F.one_hot(cells.flatten(), k).float()
    middle = (member * y.flatten()[:, None]).sum(0) / member.sum(0)  # NaN, which sorts last, for an empty cluster
    return middle.argsort().argsort()[cells]


def tint(image: Tensor, colors: Tensor) -> Tensor:
    """Lay colours [h, w, 3] of cells over an image [3, H, W] uint8, in grey below."""
    full = F.interpolate(colors.movedim(2, 0)[None].float(), image.shape[1:], mode="nearest")[0]
    return (TINT * full + (1 - TINT) * image.float().mean(0)).round().byte()


def outline(picture: Image.Image, geometry: Geometry, row: int, view: int) -> None:
    """Draw the frame of what the other view of a pair shows of `view`."""
    own = geometry._replace(boxes=geometry.boxes[row].cpu(), flips=geometry.flips[row].cpu())
    other = next(a if b == view else b for a, b in geometry.pairs if view in (a, b))
    corners = own.to_view(own.overlap(view, other).view(2, 2), view).numpy()
    low, high = corners.min(0) * picture.size, np.maximum(corners.max(0) * picture.size - 1, 0)
    ImageDraw.Draw(picture).rectangle((*low, *high), outline="yellow", width=max(1, picture.width // 100))
