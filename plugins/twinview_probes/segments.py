"""Pictures of a segmentation."""
from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from twinview.ops.pictures import from_picture, three_channels, to_picture

GAP, TITLE, HEIGHT, ENTRY = 4, 18, 180, 130  # pixels: between pictures, of headings, of a picture, width of a legend's entry
GREY = (128, 128, 128)  # of clusters that no class was matched to


def segments_sheet(images: Tensor, clusters: Tensor, classes: Tensor, match: Tensor, names: Sequence[str]) -> Tensor:
    """[3, H, W] uint8, a row for each image: itself, its clusters in the colours of their classes, its classes; a legend below.

    Normalised images [B, C, h, w] are stretched to their own range; `clusters` and `classes` [B, h, w], classes 255 black; `match` [n]: the
    cluster of each class.
    """
    n = len(names)
    colors = torch.tensor([*palette(n), GREY, (0, 0, 0)], dtype=torch.uint8)  # places n: no class was matched, n + 1: no label
    class_of = torch.full((int(clusters.max()) + 1,), n)
    for index, cluster in enumerate(match.tolist()):
        if 0 <= cluster < len(class_of):
            class_of[cluster] = index
    width = round(HEIGHT * images.shape[3] / images.shape[2])
    columns = ("image", "clusters, coloured by matched class", "labels")
    total = max(len(columns) * (width + GAP) - GAP, ENTRY)
    per_row = max(1, total // ENTRY)
    legend = -(-(n + 1) // per_row) * TITLE
    sheet = Image.new("RGB", (total, TITLE + len(images) * (HEIGHT + GAP) + legend), "white")
    draw = ImageDraw.Draw(sheet)
    for place, title in enumerate(columns):
        draw.text((place * (width + GAP) + 2, 3), title, fill="black")
    for row in range(len(images)):
        source = three_channels(images[row])
        low, high = source.amin(), source.amax()
        photo = ((source - low) / (high - low).clamp(min=1e-6) * 255).round().byte().cpu()
        shown = (photo, colors[class_of[clusters[row]]].movedim(2, 0), colors[torch.where(classes[row] == 255, n + 1, classes[row])].movedim(2, 0))
        for place, picture in enumerate(shown):
            small = to_picture(picture).resize((width, HEIGHT), Image.Resampling.BILINEAR if place == 0 else Image.Resampling.NEAREST)
            sheet.paste(small, (place * (width + GAP), TITLE + row * (HEIGHT + GAP)))
    for index, name in enumerate([*names, "no class"]):
        x, y = index % per_row * ENTRY, TITLE + len(images) * (HEIGHT + GAP) + index // per_row * TITLE
        draw.rectangle((x + 2, y + 4, x + 12, y + 14), fill=tuple(colors[index].tolist()))
        draw.text((x + 16, y + 3), name, fill="black")
    return from_picture(sheet)


def palette(n: int) -> list[tuple[int, int, int]]:
    """n colours whose hues lie far apart."""
    found = [colorsys.hsv_to_rgb(i * 0.381966 % 1, (0.9, 0.55)[i % 2], (1.0, 0.8, 0.6)[i % 3]) for i in range(n)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in found]
