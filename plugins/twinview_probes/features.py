"""Frozen dense features of a set of images, and a sample of their cells."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.errors import RecipeError
from twinview.ops.ranks import gather_rows
from twinview.ops.seeding import uniform
from twinview.values import EncoderSpec, Features, PlainBatch, Size


class Dense(Protocol):
    """Images [B, C, H, W], normalized -> maps [B, channels, ceil(H / stride), ceil(W / stride)]."""

    channels: int

    def __call__(self, images: Tensor) -> Tensor:
        """The maps, float32."""
        ...


class FrozenDense(Dense, Protocol):
    """Maps of weights that stay as they are while they are asked for, so that what is computed of them can be kept."""

    modules: Sequence[nn.Module]  # whose weights decide on them


class Maps:
    """Levels of an encoder, brought to one stride bilinearly and put behind one another."""

    def __init__(self, encoder: nn.Module, levels: Sequence[str], stride: int) -> None:
        """`encoder` is put into eval mode.  Raises RecipeError for a level that it does not give."""
        self.encoder, self.levels, self.stride = encoder.eval(), levels, stride
        self.modules: Sequence[nn.Module] = (encoder,)
        spec = cast(EncoderSpec, encoder.spec)
        self.channels = sum(channels(spec, level) for level in levels)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, sum of the levels' channels, h, w]."""
        features: Features = self.encoder(images)
        size = grid(images, self.stride)
        return torch.cat([F.interpolate(features.at(level).float(), size=size, mode="bilinear", align_corners=False) for level in self.levels], 1)


class Pixels:
    """Each cell's own pixels: what color and texture within a cell alone tell."""

    def __init__(self, stride: int, channels: int) -> None:
        """`channels`: of the images."""
        self.stride, self.channels = stride, channels * stride**2
        self.modules: Sequence[nn.Module] = ()

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C * stride**2, h, w]; a cell that reaches over the border is filled with the pixels there."""
        (height, width), (h, w) = images.shape[-2:], grid(images, self.stride)
        whole = F.pad(images, (0, w * self.stride - width, 0, h * self.stride - height), mode="replicate")
        return F.pixel_unshuffle(whole, self.stride)


def channels(spec: EncoderSpec, level: str) -> int:
    """Width of `cells` or of a level.  Raises RecipeError where the encoder gives no such map."""
    maps = {"cells": spec.cells, **spec.levels}
    if level not in maps:
        raise RecipeError(f"[[evaluate]] levels: the encoder gives no map {level!r}. There is: {', '.join(maps)}.")
    return maps[level].channels


def grid(images: Tensor, stride: int) -> Size:
    """Cells (h, w) of images [..., H, W]."""
    return -(-images.shape[-2] // stride), -(-images.shape[-1] // stride)


class Cells(NamedTuple):
    """Cells of many images, in the order of the images, the same on every rank."""

    x: Tensor  # [N, C] float32
    y: Tensor  # [N] int64 class
    order: Tensor  # [N] int64: row of x and y by place in that order; gathered rows lie by rank


def sample_cells(dense: Dense, batches: Iterable[PlainBatch], *, cells: int, ignore: Tensor, seed: int) -> Cells:
    """Up to `cells` labeled cells of each image of all ranks, drawn from (seed, image) alone.

    A cell has the label of the pixel at its middle, 0 in batches without label maps; cells with a label in `ignore` [k] are left out.
    Everything lies on the device of `ignore`.
    Memory: images x cells x channels x 4 bytes, and while batches are put together a rank's share of that once more.
    """
    device = ignore.device
    xs, ys, ids = [torch.empty(0, dense.channels, device=device)], [ignore[:0]], [ignore[:0]]
    for batch in batches:
        maps = dense(batch.images.to(device))
        grid = (maps.shape[-2], maps.shape[-1])
        labels = middles(batch.labels["map"].to(device), grid).flatten(1) if "map" in batch.labels else ids[0].new_zeros(len(maps), grid[0] * grid[1])
        known = ~torch.isin(labels, ignore)
        draws = uniform(batch.ids, labels.shape[1], seed, "probes.cells").to(device)
        image, cell = _first(torch.where(known, draws, 2.0), known.sum(1).clamp(max=cells))
        xs.append(maps.flatten(2)[image, :, cell])
        ys.append(labels[image, cell])
        ids.append(batch.ids.to(device)[image])
    return Cells(gather_rows(torch.cat(xs)), gather_rows(torch.cat(ys)), gather_rows(torch.cat(ids)).argsort(stable=True))


def first(batches: Iterable[PlainBatch], images: int) -> Iterator[PlainBatch]:
    """The first `images` of the set, of which a rank reads its share; 0: all."""
    for batch in batches:
        n = int((batch.ids < images).sum()) if images else len(batch.ids)
        if n:
            yield PlainBatch(batch.keys[:n], batch.ids[:n], batch.images[:n], {name: labels[:n] for name, labels in batch.labels.items()})
        if n < len(batch.ids):
            return


def middles(labels: Tensor, cells: Size) -> Tensor:
    """Label maps [B, H, W] -> [B, h, w]: the label of the pixel at the middle of each cell."""
    y, x = (((torch.arange(n, device=labels.device) + 0.5) * pixels / n).long() for n, pixels in zip(cells, labels.shape[-2:]))
    return labels[:, y[:, None], x]


def _first(draws: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of `draws` [B, n] the places of the smallest, `count` [B] of them: (rows, places)."""
    ranked = draws.argsort(1)
    row, column = (torch.arange(draws.shape[1], device=draws.device) < count[:, None]).nonzero(as_tuple=True)
    return row, ranked[row, column]
