"""The images that are trained and scored on: shards for the training, arrays for the probes."""
from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


class Labeled(NamedTuple):
    """Images with what is known of them, in the order of their keys."""

    keys: list[str]
    images: Tensor  # [N, 3, H, W] uint8
    labels: Tensor  # [N] class, or [N, H, W] label map


def require_shards(shards: Path, *names: str) -> None:
    """Ends with one line and exit code 2 where a set is missing."""
    for name in names:
        if not any((shards / name).glob("*.tar")):
            print(f"{shards / name}: holds no shards. Pack them as the head of this file says, or name their folder with --shards.", file=sys.stderr)
            sys.exit(2)


def read(folder: Path, size: tuple[int, int]) -> Labeled:
    """All images of a set of shards with their classes (.cls) or label maps (.seg.png), squeezed to `size` (height, width)."""
    return read_parts(folder, size, lambda keys, labels: [list(range(len(keys)))])[0]


def read_parts(folder: Path, size: tuple[int, int], split: Callable[[list[str], Tensor], list[list[int]]]) -> list[Labeled]:
    """Parts of a set: `split` is given the keys and the classes [N] (0 where there are none), and gives numbers; only these images are decoded."""
    fields: dict[str, dict[str, bytes]] = {}
    for shard in sorted(folder.glob("*.tar")):
        for name, content in _members(shard):
            key, _, field = name.rpartition("/")[2].partition(".")
            fields.setdefault(f"{name.rpartition('/')[0]}/{key}", {})[field] = content
    keys = sorted(fields)
    classes = torch.tensor([int(fields[key].get("cls", b"0")) for key in keys])
    parts = []
    for chosen in split(keys, classes):
        found = [_decoded(fields[keys[i]], size) for i in chosen]
        images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*found))
        parts.append(Labeled([keys[i] for i in chosen], images.permute(0, 3, 1, 2), labels))
    return parts


def _decoded(fields: dict[str, bytes], size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Image [H, W, 3] and class or label map."""
    picture = next(content for field, content in fields.items() if field in ("jpg", "jpeg", "png"))
    image = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
    if "cls" in fields:
        return image, np.asarray(int(fields["cls"]), np.int64)
    return image, np.asarray(Image.open(io.BytesIO(fields["seg.png"])).resize(size[::-1], Image.Resampling.NEAREST), np.int64)


def by_class(labels: Tensor, counts: list[int]) -> list[list[int]]:
    """Numbers of the first `counts[0]` images of every class, of the next `counts[1]`, and so on."""
    parts: list[list[int]] = [[] for _ in counts]
    for label in torch.unique(labels).tolist():
        of_class = (labels == label).nonzero()[:, 0].tolist()
        for part, count in zip(parts, counts):
            part.extend(of_class[:count])
            of_class = of_class[count:]
    return [sorted(part) for part in parts]


def place(key: str) -> str:
    """Of an image's key: what stands before `__`."""
    return key.rpartition("/")[2].partition("__")[0]


def blocks(keys: list[str], length: int) -> list[list[int]]:
    """Numbers of the images, in blocks of `length` neighbors of one place: frames that lie next to each other are not independent."""
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
