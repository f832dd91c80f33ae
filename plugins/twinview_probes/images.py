"""Frozen features of whole images: what sees them, and all features of a set, from disk where they are there."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.errors import RecipeError
from twinview.ops.ranks import gather_rows
from twinview.ops.seeding import seed_of
from twinview.values import DataFactory, EncoderSpec, Features, PlainBatch, Size

THUMBNAIL = 32  # sides of the raw pixels that are a baseline, at most


class See(Protocol):
    """Images [B, C, H, W], normalized -> features of whole images, [B, channels, 1, 1]."""

    channels: int
    name: str  # of what is seen, the same for the same features
    modules: Sequence[nn.Module]  # whose weights decide on it

    def __call__(self, images: Tensor) -> Tensor:
        """Float32."""
        ...


class Embedded(NamedTuple):
    """The features of a set, in the order of its images, the same on every rank."""

    x: Tensor  # [N, C] float32
    y: Tensor  # [N] int64 class
    names: Tensor  # [N] int64: hash of the last part of the image's key, by which lists of images name it


class Whole:
    """Images -> the features of the whole image, by an encoder that is put into eval mode."""

    def __init__(self, encoder: nn.Module, on: str) -> None:
        self.encoder, self.on = encoder.eval(), on
        self.channels = width_of(cast(EncoderSpec, encoder.spec), on)
        self.name = on
        self.modules: Sequence[nn.Module] = [encoder]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, ., H, W] -> [B, C, 1, 1]."""
        features: Features = self.encoder(images)
        found = features.at(self.on).float()
        return found[..., None, None] if found.ndim == 2 else found.mean((2, 3), keepdim=True)


class Thumbnails:
    """Images -> the pixels of a picture of at most 32 x 32, means of what lies there."""

    def __init__(self, size: Size, channels: int) -> None:
        """`channels`: of the images."""
        self.small = (min(size[0], THUMBNAIL), min(size[1], THUMBNAIL))
        self.channels = channels * self.small[0] * self.small[1]
        self.name = f"pixels {self.small}"
        self.modules: Sequence[nn.Module] = []

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C * h * w, 1, 1]."""
        return F.adaptive_avg_pool2d(images, self.small).flatten(1)[..., None, None]


def embed(
    see: See, data: DataFactory, shards: str | list[str] | None, read: Callable[[], Iterable[PlainBatch]], device: torch.device, lasting: bool,
    **how: Any,
) -> Embedded:
    """All features of a set with their classes; each image once, on however many ranks.  `lasting`: these weights stay as they are."""

    def make() -> dict[str, Tensor]:
        return _sorted(see, read(), device)._asdict()

    found = data.stored(f"probes.images {see.name}", see.modules, shards, make, lasting=lasting, **how)
    return Embedded(**{name: value.to(device) for name, value in found.items()})


def _sorted(see: See, batches: Iterable[PlainBatch], device: torch.device) -> Embedded:
    xs, ys, names, ids = [torch.empty(0, see.channels, device=device)], *([torch.empty(0, dtype=torch.int64, device=device)] for _ in range(3))
    for batch in batches:
        xs.append(see(batch.images.to(device)).flatten(1))
        ys.append(batch.labels["class"].to(device))
        names.append(torch.tensor([name_hash(key) for key in batch.keys], device=device))
        ids.append(batch.ids.to(device))
    order = gather_rows(torch.cat(ids)).argsort(stable=True)
    return Embedded(*(gather_rows(torch.cat(rows))[order] for rows in (xs, ys, names)))


def name_hash(key: str) -> int:
    """Of the last part of a key or of a file's name, without its suffix: `train/n01440764/n01440764_10026.JPEG` -> that of `n01440764_10026`."""
    last = key.rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return seed_of("name", stem if dot and suffix.lower() in ("jpeg", "jpg", "png", "webp") else last)


def width_of(spec: EncoderSpec, on: str) -> int:
    """Channels of `pooled`, `cells` or a level.  Raises RecipeError where the encoder gives no such features."""
    widths = {"pooled": spec.pooled, "cells": spec.cells.channels, **{name: level.channels for name, level in spec.levels.items()}}
    if on not in widths:
        raise RecipeError(f"[[evaluate]] on: the encoder gives no {on!r}. There is: {', '.join(widths)}.")
    return widths[on]
