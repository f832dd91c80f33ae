"""What an encoder's frozen features are worth: on dev, where settings are chosen, and on val, which is reported."""
from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proof.data import Labeled, blocks, by_class, middles, pixels, place, read, read_parts
from proof.methods import Task
from proof.probe import confusions, knn, linear, miou

BANK, DEV = 500, 300  # labeled images a class that probes learn from, and on which settings are chosen; both from the training images
STRIDE = 8  # pixels of a cell that street scenes are labeled by
CELLS = 64  # of an image that the probe learns from
BLOCK = 8  # frames of one place that are drawn together in a bootstrap
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of [data] where a recipe says nothing

See = Callable[[Tensor], Tensor]  # images [N, 3, H, W] uint8 -> features [N, C], or [N, C, h, w]


class Sets(NamedTuple):
    """The labeled images of a task."""

    bank: Labeled
    dev: Labeled
    val: Labeled


@cache
def sets(task: Task, shards: Path) -> Sets:
    """Bank and dev are parts of the training images: by class, or by place (every fifth place is dev)."""

    def split(keys: list[str], classes: Tensor) -> list[list[int]]:
        if task.kind == "classes":
            return by_class(classes, [BANK, DEV])
        named = sorted({place(key) for key in keys})
        return [[i for i, key in enumerate(keys) if (named.index(place(key)) % 5 == 0) == held] for held in (False, True)]

    bank, dev = read_parts(shards / task.bank, task.size, split)
    return Sets(bank, dev, read(shards / task.val, task.size))


class Encoder:
    """An encoder's features of images as they are, in eval mode; several maps are brought to one stride."""

    def __init__(self, encoder: nn.Module, on: tuple[str, ...]) -> None:
        self.encoder, self.on = encoder.eval(), on
        self.mean, self.std = (torch.tensor(numbers).view(1, 3, 1, 1) * 255 for numbers in (MEAN, STD))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> pooled [N, C], or [N, C, H / 8, W / 8]."""
        found = []
        for batch in torch.split(images, 250 if images.shape[-1] <= 64 else 32):
            features = self.encoder((batch.float() - self.mean) / self.std)
            if self.on == ("pooled",):
                found.append(features.pooled.float())
            else:
                size = (images.shape[2] // STRIDE, images.shape[3] // STRIDE)
                maps = [F.interpolate(features.at(level).float(), size=size, mode="bilinear", align_corners=False) for level in self.on]
                found.append(torch.cat(maps, 1))
        return torch.cat(found)


def raw_pixels(task: Task) -> See:
    """The floor that knows nothing but the pixels: of the whole image, or of each cell."""
    return pixels if task.kind == "classes" else lambda images: pixels(images, STRIDE)


def score(see: See, task: Task, shards: Path) -> dict[str, Any]:
    """Scores in percent by name (`linear`, `knn`, `miou`; those of dev start with `dev/`), and what a bootstrap needs."""
    return (_classes if task.kind == "classes" else _maps)(see, *sets(task, shards))


def _classes(see: See, bank: Labeled, dev: Labeled, val: Labeled) -> dict[str, Any]:
    x = see(bank.images)
    features = {"dev/": (see(dev.images), dev.labels), "": (see(val.images), val.labels)}
    fitted = linear(x, bank.labels, *features["dev/"])
    scores: dict[str, Any] = {"decay": fitted.decay}
    for name, (found, truth) in features.items():
        for probe, answers in (("linear", fitted(found)), ("knn", knn(x, bank.labels, found))):
            right = answers == truth
            scores[f"{name}{probe}"] = round(100 * float(right.double().mean()), 3)
            if not name:
                scores[f"{probe}_right"] = pack(right)
    return scores


def _maps(see: See, bank: Labeled, dev: Labeled, val: Labeled) -> dict[str, Any]:
    classes = 8
    draws = torch.Generator().manual_seed(0)

    def cells(data: Labeled) -> tuple[Tensor, Tensor]:
        """A drawn part of the labeled cells [n, C] of each image, and their classes."""
        xs, ys = [], []
        for image, labels in zip(torch.split(data.images, 32), torch.split(middles(data.labels, STRIDE).flatten(1), 32)):
            chosen = torch.randint(labels.shape[1], (len(image), CELLS), generator=draws)
            found = see(image).flatten(2).transpose(1, 2)
            xs.append(found.gather(1, chosen[..., None].expand(-1, -1, found.shape[2])).flatten(0, 1))
            ys.append(labels.gather(1, chosen).flatten())
        x, y = torch.cat(xs), torch.cat(ys)
        return x[y < classes], y[y < classes]

    x, y = cells(bank)
    fitted = linear(x, y, *cells(dev))
    scores: dict[str, Any] = {"decay": fitted.decay}
    for name, data in (("dev/", dev), ("", val)):
        truth = middles(data.labels, STRIDE)
        found = [fitted(see(images).movedim(1, 3).flatten(0, 2)).view(len(images), *truth.shape[1:]) for images in torch.split(data.images, 32)]
        counts = confusions(truth, torch.cat(found), classes)
        scores[f"{name}miou"] = round(float(miou(counts.sum(0))), 3)
        if not name:
            scores["accuracy"] = round(100 * float(counts.sum(0).diagonal().sum() / counts.sum()), 3)
            scores["confusions"] = [counts[block].sum(0).flatten().tolist() for block in blocks(data.keys, BLOCK)]
    return scores


def pack(right: Tensor) -> str:
    """Bits [N], 8 to two hex digits; `unpack` gives them back."""
    import numpy as np

    return np.packbits(right.numpy()).tobytes().hex()


def unpack(text: str, count: int) -> Tensor:
    """Bits [count] of what `pack` gave."""
    import numpy as np

    return torch.from_numpy(np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:count].astype(bool))
