"""Several crops of each image, drawn from (seed, image) alone."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.crops import random_resized_box
from twinview.ops.seeding import generator
from twinview.values import PlainBatch, Size


def crops(batch: PlainBatch, views: int, scale: tuple[float, float], size: Size, seed: int) -> Tensor:
    """[B * views, C, h, w]: the crops of an image behind one another, each mirrored with chance 1/2."""
    found = []
    for image, i in zip(batch.images, batch.ids.tolist()):
        rng = generator(seed, "signals.crops", i)
        for _ in range(views):
            x0, y0, x1, y1 = random_resized_box((image.shape[1], image.shape[2]), rng, scale)
            view = F.interpolate(image[None, :, y0:y1, x0:x1], size, mode="bilinear", antialias=True)[0]
            found.append(view.flip(-1) if rng.random() < 0.5 else view)
    return torch.stack(found)
