"""How well frozen features of whole images tell classes apart: by their nearest neighbours, and by a linear classifier."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Literal, cast

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.branch import Branches
from twinview.errors import DataError, RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops.checks import pixels
from twinview.ops.ranks import gather_rows, summed
from twinview.values import DataFactory, Dims, EncoderSpec, Features, PlainBatch, Progress, Size, Traits
from twinview_probes.features import Cells, Dense, sample_cells
from twinview_probes.linear import fit
from twinview_probes.sets import check_same_classes

IMAGES = 64  # that the encoder sees at once
THUMBNAIL = 32  # sides of the raw pixels that are a baseline, at most

Classify = Callable[[Tensor], Tensor]  # features [B, C] -> classes [B]


@part
class Classes:
    """What the evaluations on class labels (field cls) share: the images, the features, the baselines, the share of `val` that is right.

    Memory: images of `train` x channels x 4 bytes on the device of every rank.
    """

    train: str | list[str] = ""  # labelled shards to learn from; empty: the run's own
    val: str | list[str]  # labelled shards to score on
    size: tuple[int, int] = field(validator=pixels)  # height, width of the images in pixels
    crop: bool = False  # the largest central box of that shape, instead of the whole image squeezed into it
    on: str = "pooled"  # features: pooled, or the mean of "cells" or of a level such as "c4"
    baselines: list[Literal["random", "pixels"]] = field(factory=list)  # the encoder's random start; the pixels of a picture of at most 32 x 32

    score: ClassVar[str]  # the first word of the scores

    @hookimpl
    def traits(self) -> Traits:
        """Needs the features that `on` names, and labels of the run's own shards where it learns from them."""
        features = self.on if self.on in ("pooled", "cells") else "levels"
        scores = frozenset(f"{self.score}/{name}top1" for name in ("", *(f"{baseline}/" for baseline in self.baselines)))
        return Traits(needs=frozenset([features] if self.train else [features, "labels"]), scores=scores)

    @hookimpl
    def check(self, dims: Dims, data: DataFactory) -> None:
        """A wrong level, or shards that are not there, are refused before the training and not after it."""
        _width(dims.encoder, self.on)
        for shards in filter(None, (self.train, self.val)):
            data.require(shards)

    @hookimpl
    def before_epoch(self, data: DataFactory, progress: Progress) -> None:
        """Read images of each set before the first step: shards that are not there, or hold no labels, are missed now and not at the end."""
        if progress.step == 0:
            check_same_classes(data, self.train, self.val, f"probes.{self.score}")
            for shards in (self.train, self.val):
                next(iter(self._read(data, shards, 1)), None)

    def scores(self, branches: Branches, data: DataFactory) -> dict[str, float]:
        """`<score>/top1` of the online branch, and of each baseline as `<score>/random/top1`: percent of `val`.  Equal on every rank.

        Raises DataError for sets that hold no image, or a class in `val` that `train` has no image of.
        """
        device = next(branches.online.parameters()).device
        seen: dict[str, Dense] = {"": Whole(branches.online.encoder, self.on)}
        if "random" in self.baselines:
            seen["random/"] = Whole(branches.initial().to(device), self.on)
        if "pixels" in self.baselines:
            seen["pixels/"] = Thumbnails(self.size, data.channels)
        return {f"{self.score}/{name}top1": 100 * self._share_right(see, data, device) for name, see in seen.items()}

    def learn(self, train: Cells, classes: int) -> Classify:
        """A classifier from the features of `train`, a row an image; its answers are ids of `train`.

        Ids lie below `classes` and may lie far apart (such as 20231105): those that occur are numbered.  Raises ValueError for an id that does not.
        """
        if int(train.y.max()) >= classes:
            raise ValueError(f"class {int(train.y.max())} among ids below {classes}")
        ids, numbers = torch.unique(train.y, return_inverse=True)
        classify = self.fit_numbered(train._replace(y=numbers), len(ids))
        return lambda x: ids[classify(x)]

    def fit_numbered(self, train: Cells, classes: int) -> Classify:
        """What `learn` gives, for classes 0 to `classes` - 1 that all occur."""
        raise NotImplementedError

    def _share_right(self, see: Dense, data: DataFactory, device: torch.device) -> float:
        train = vectors(see, self._read(data, self.train, IMAGES), device)
        if not len(train.y):
            raise DataError(f"[[evaluate]] probes.{self.score}: {self.train or '[data] shards'} holds no image.")
        classes, classify = torch.unique(train.y), self.learn(train, int(train.y.max()) + 1)
        counts = torch.zeros(2, dtype=torch.int64, device=device)  # right, all
        strange = torch.full((1,), -1, dtype=torch.int64, device=device)  # a class that `train` does not have
        for batch in self._read(data, self.val, IMAGES):
            truth = batch.labels["class"].to(device)
            given = classify(see(batch.images.to(device)).flatten(1))
            counts += torch.stack([(given == truth).sum(), truth.new_tensor(len(truth))])
            strange = torch.maximum(strange, torch.where(torch.isin(truth, classes), -1, truth).max())
        counts, most = summed(counts), int(gather_rows(strange).max())
        if not counts[1]:
            raise DataError(f"[[evaluate]] probes.{self.score}: {self.val} holds no image.")
        if most >= 0:
            fault = f"{self.val} holds class {most}, and {self.train or '[data] shards'} no image of it"
            raise DataError(f"[[evaluate]] probes.{self.score}: {fault}. Name sets of the same classes.")
        return int(counts[0]) / int(counts[1])

    def _read(self, data: DataFactory, shards: str | list[str], images: int) -> Iterator[PlainBatch]:
        return data.plain(shards or None, size=self.size, labels=("class",), batch_size=images, crop=self.crop)


@part
class Knn(Classes):
    """k nearest neighbours by cosine, each voting with weight exp(cosine / temperature) (Wu et al. 2018; DINO)."""

    score = "knn"
    k: int = field(default=20, validator=gt(0))  # neighbours that vote
    temperature: float = field(default=0.07, validator=gt(0))  # of the votes

    @hookimpl
    def evaluate(self, branches: Branches, data: DataFactory) -> dict[str, float]:
        """`knn/top1`, `knn/random/top1`, `knn/pixels/top1`: percent of `val`."""
        return self.scores(branches, data)

    def fit_numbered(self, train: Cells, classes: int) -> Classify:
        """The neighbours are looked for among all of `train`."""
        bank, labels, k = F.normalize(train.x, dim=1), train.y, min(self.k, len(train.y))

        def classify(x: Tensor) -> Tensor:
            near, places = (F.normalize(x, dim=1) @ bank.T).topk(k)
            weight = ((near - near[:, :1]) / self.temperature).exp()  # up to a factor for each row
            return weight.new_zeros(len(x), classes).scatter_add_(1, labels[places], weight).argmax(1)

        return classify


@part
class Linear(Classes):
    """A linear classifier on standardised features (no affine), fitted on all of `train` without augmentation."""

    score = "linear"
    steps: int = field(default=1000, validator=gt(0))  # of AdamW
    batch: int = field(default=1024, validator=gt(0))  # images a step, drawn with replacement
    lr: float = field(default=0.01, validator=gt(0))  # at the start; cosine to 0
    weight_decay: float = field(default=0.0, validator=ge(0))
    seed: int = field(default=0, validator=ge(0))  # of the images drawn

    @hookimpl
    def evaluate(self, branches: Branches, data: DataFactory) -> dict[str, float]:
        """`linear/top1`, `linear/random/top1`, `linear/pixels/top1`: percent of `val`."""
        return self.scores(branches, data)

    def fit_numbered(self, train: Cells, classes: int) -> Classify:
        """The classifier, its standardisation in it."""
        found = fit(train, classes, steps=self.steps, batch=self.batch, lr=self.lr, weight_decay=self.weight_decay, seed=self.seed)
        return lambda x: F.linear(x, found.weight, found.bias).argmax(1)


class Whole:
    """Images -> one cell each, the features of the whole image, by an encoder that is put into eval mode."""

    def __init__(self, encoder: nn.Module, on: str) -> None:
        self.encoder, self.on = encoder.eval(), on
        self.channels = _width(cast(EncoderSpec, encoder.spec), on)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, ., H, W] -> [B, C, 1, 1]."""
        features: Features = self.encoder(images)
        found = features.at(self.on).float()
        return found[..., None, None] if found.ndim == 2 else found.mean((2, 3), keepdim=True)


class Thumbnails:
    """Images -> one cell each: the pixels of a picture of at most 32 x 32, means of what lies there."""

    def __init__(self, size: Size, channels: int) -> None:
        """`channels`: of the images."""
        self.small = (min(size[0], THUMBNAIL), min(size[1], THUMBNAIL))
        self.channels = channels * self.small[0] * self.small[1]

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C * h * w, 1, 1]."""
        return F.adaptive_avg_pool2d(images, self.small).flatten(1)[..., None, None]


def vectors(see: Dense, batches: Iterable[PlainBatch], device: torch.device) -> Cells:
    """Features and classes of the images of all ranks: each image is one cell, its class a label map of one pixel."""
    labeled = (batch._replace(labels={"map": batch.labels["class"][:, None, None]}) for batch in batches)
    return sample_cells(see, labeled, cells=1, ignore=torch.empty(0, dtype=torch.int64, device=device), seed=0)


def _width(spec: EncoderSpec, on: str) -> int:
    """Channels of `pooled`, `cells` or a level.  Raises RecipeError where the encoder gives no such features."""
    widths = {"pooled": spec.pooled, "cells": spec.cells.channels, **{name: level.channels for name, level in spec.levels.items()}}
    if on not in widths:
        raise RecipeError(f"[[evaluate]] on: the encoder gives no {on!r}. There is: {', '.join(widths)}.")
    return widths[on]
