"""Pictures of a segmentation."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.pictures import from_picture, three_channels
from twinview.ops.sheet import Cell, Entry, palette, sheet

HEIGHT = 180  # pixels of a picture
UNMATCHED, UNLABELED = (128, 128, 128), (0, 0, 0)  # clusters that no class was matched to, and places that have no label


def segments_sheet(images: Tensor, clusters: Tensor, classes: Tensor, match: Tensor, names: Sequence[str]) -> Tensor:
    """[3, H, W] uint8, a row for each image: itself, its clusters in the colors of their classes, its classes; a legend below.

    Normalized images [B, C, h, w] are stretched to their own range; `clusters` and `classes` [B, h, w], classes 255 black; `match` [n]: the
    cluster of each class.
    """
    n = len(names)
    colors = torch.tensor([*palette(n), UNMATCHED, UNLABELED], dtype=torch.uint8)
    class_of = torch.full((int(clusters.max()) + 1,), n)
    for index, cluster in enumerate(match.tolist()):
        if 0 <= cluster < len(class_of):
            class_of[cluster] = index
    zoom = max(1, -(-HEIGHT // images.shape[2]))
    rows = []
    for row in range(len(images)):
        source = three_channels(images[row])
        low, high = source.amin(), source.amax()
        photo = ((source - low) / (high - low).clamp(min=1e-6) * 255).round().byte().cpu()
        drawn = (colors[class_of[clusters[row]]].movedim(2, 0), colors[torch.where(classes[row] == 255, n + 1, classes[row])].movedim(2, 0))
        rows.append([Cell(photo), *(Cell(F.interpolate(picture[None], scale_factor=zoom, mode="nearest")[0]) for picture in drawn)])
    legend = [Entry(tuple(colors[index].tolist()), name) for index, name in enumerate(names)]
    if bool((class_of[clusters] == n).any()):
        legend.append(Entry(UNMATCHED, "a cluster that no class was matched to"))
    if bool((classes == 255).any()):
        legend.append(Entry(UNLABELED, "no label"))
    headings = ("image", "clusters, in the colors of the classes that they were matched to", "labels")
    return from_picture(sheet(rows, headings=headings, legend=legend, height=HEIGHT, nearest=True))
