"""The images that are trained and scored on: shards for the training, arrays for the probes."""
from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255


class Labelled(NamedTuple):
    """Images with what is known of them, in the order of their keys."""

    keys: list[str]
    images: Tensor  # [N, 3, H, W] uint8
    labels: Tensor  # [N] class, or [N, H, W] label map

    def take(self, chosen: list[int]) -> Labelled:
        """The images of these numbers."""
        return Labelled([self.keys[i] for i in chosen], self.images[chosen], self.labels[chosen])


def require_shards(shards: Path, *names: str) -> None:
    """Ends with one line and exit code 2 where a set is missing."""
    for name in names:
        if not any((shards / name).glob("*.tar")):
            print(f"{shards / name}: holds no shards. Pack them as the head of this file says, or name their folder with --shards.", file=sys.stderr)
            sys.exit(2)


def read(folder: Path, size: tuple[int, int]) -> Labelled:
    """All images of a set of shards with their classes (.cls) or label maps (.seg.png), squeezed to `size` (height, width)."""
    fields: dict[str, dict[str, bytes]] = {}
    for shard in sorted(folder.glob("*.tar")):
        for name, content in _members(shard):
            key, _, field = name.rpartition("/")[2].partition(".")
            fields.setdefault(f"{name.rpartition('/')[0]}/{key}", {})[field] = content
    keys = sorted(fields)
    images, labels = [], []
    for key in keys:
        found = fields[key]
        picture = next(content for field, content in found.items() if field in ("jpg", "jpeg", "png"))
        images.append(np.asarray(Image.open(io.BytesIO(picture)).convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)))
        if "cls" in found:
            labels.append(np.asarray(int(found["cls"])))
        else:
            labels.append(np.asarray(Image.open(io.BytesIO(found["seg.png"])).resize(size[::-1], Image.Resampling.NEAREST)))
    return Labelled(keys, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(labels).astype(np.int64)))


def by_class(data: Labelled, counts: list[int]) -> list[list[int]]:
    """Numbers of the first `counts[0]` images of every class, of the next `counts[1]`, and so on."""
    parts: list[list[int]] = [[] for _ in counts]
    for label in torch.unique(data.labels).tolist():
        of_class = (data.labels == label).nonzero()[:, 0].tolist()
        for part, count in zip(parts, counts):
            part.extend(of_class[:count])
            of_class = of_class[count:]
    return [sorted(part) for part in parts]


def place(key: str) -> str:
    """Of an image's key: what stands before `__`."""
    return key.rpartition("/")[2].partition("__")[0]


def blocks(keys: list[str], length: int) -> list[list[int]]:
    """Numbers of the images, in blocks of `length` neighbours of one place: frames that lie next to each other are not independent."""
    places: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        places.setdefault(place(key), []).append(i)
    return [of_place[i : i + length] for of_place in places.values() for i in range(0, len(of_place), length)]


def middles(labels: Tensor, stride: int) -> Tensor:
    """Label maps [N, H, W] -> [N, H / stride, W / stride]: the label of the pixel at the middle of each cell."""
    return labels[:, stride // 2 :: stride, stride // 2 :: stride]


def pixels(images: Tensor, stride: int = 1) -> Tensor:
    """Raw pixels as features: [N, 3, H, W] -> [N, 3 H W], or with a stride [N, 3 stride**2, H / stride, W / stride]."""
    x = images.float() / 255
    return x.flatten(1) if stride == 1 else F.pixel_unshuffle(x, stride)


def _members(shard: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(shard) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()
