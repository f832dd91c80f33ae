"""How well frozen features of whole images tell classes apart: what the evaluations on class labels share."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from attrs import field
from attrs.validators import and_, gt, le
from torch import Tensor

from twinview.branch import Branches
from twinview.errors import DataError
from twinview.hooks import hookimpl, part
from twinview.ops.checks import pixels
from twinview.ops.ranks import rank, summed, world
from twinview.values import DataFactory, Dims, PlainBatch, Progress, Traits
from twinview_probes.images import Embedded, See, Thumbnails, Whole, embed, width_of
from twinview_probes.sets import check_same_classes, say_if_shared

IMAGES = 64  # that the encoder sees at once
ROWS = 4096  # of `val` that a classifier answers at once
Metric = Literal["top1", "top5", "per_class", "groups"]
GROUPS = ("many", "medium", "few")

Answers = dict[str, Tensor]  # variant ("", or "@k20") -> a number for each class, [B, classes]
Classify = Callable[[Tensor], Answers]  # of features [B, C]


class Rows(Protocol):
    """Features [N, C] and classes [N]."""

    @property
    def x(self) -> Tensor:
        """Features."""
        ...

    @property
    def y(self) -> Tensor:
        """Classes."""
        ...


class Truth(NamedTuple):
    """The classes of `val`, as `train` numbers them, and what `train` holds of each."""

    y: Tensor  # [N] int64
    counts: Tensor  # [classes] images of `train`


@part
class Classes(ABC):
    """What the evaluations on class labels (field cls) share: the images, the features, the baselines, the share of `val` that is right.

    Memory: images of both sets x channels x 4 bytes on every rank.
    """

    train: str | list[str] = ""  # labeled shards to learn from; empty: the run's own
    val: str | list[str]  # labeled shards to score on
    size: tuple[int, int] = field(validator=pixels)  # height, width of the images in pixels
    crop: bool = False  # the largest central box of that shape, instead of the whole image squeezed into it
    crop_share: float = field(default=1.0, validator=and_(gt(0), le(1)))  # of that box's sides; 0.875: 224 of 256 pixels, as ImageNet's tables do
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of the resize
    on: str = "pooled"  # features: pooled, or the mean of "cells" or of a level such as "c4"
    baselines: list[Literal["random", "pixels"]] = field(factory=list)  # the encoder's random start; the pixels of a picture of at most 32 x 32
    metrics: list[Metric] = field(factory=lambda: ["top1"])  # per_class: mean accuracy of the classes; groups: many, medium, few (long tails)
    shots: tuple[int, int] = (20, 100)  # of groups: classes of fewer images in `train` are few, of more than the second many (Liu et al. 2019)

    score: ClassVar[str]  # the first word of the scores
    learns_all: ClassVar[bool] = True  # from every image of `train`, and not from a few that it draws

    def __attrs_post_init__(self) -> None:
        if self.crop_share < 1 and not self.crop:
            raise ValueError("crop_share is of crop = true. Write both, or leave crop_share out")
        if not self.metrics or self.shots[0] > self.shots[1] or self.shots[0] < 0:
            raise ValueError(f"metrics wants at least one, and shots two numbers that rise, not {self.metrics} and {list(self.shots)}")

    @hookimpl
    def traits(self) -> Traits:
        """Needs the features that `on` names, and labels of the run's own shards where it learns from them."""
        features = self.on if self.on in ("pooled", "cells") else "levels"
        return Traits(needs=frozenset([features] if self.train else [features, "labels"]), scores=self.names(), instead='Write on="cells".')

    def names(self) -> frozenset[str]:
        """Of the scores."""
        measures = [m for metric in self.metrics for m in (GROUPS if metric == "groups" else (metric,))]
        of = ("", *(f"{baseline}/" for baseline in self.baselines))
        return frozenset(f"{self.score}/{name}{measure}{variant}" for name in of for measure in measures for variant in self.variants())

    def variants(self) -> tuple[str, ...]:
        """Of the classifier: what stands behind the names of the scores; one nameless."""
        return ("",)

    @hookimpl
    def check(self, dims: Dims, data: DataFactory) -> None:
        """A wrong level, or shards that are not there, are refused before the training and not after it."""
        width_of(dims.encoder, self.on)
        for shards in filter(None, (self.train, self.val)):
            data.require(shards)

    @hookimpl
    def before_epoch(self, data: DataFactory, progress: Progress) -> None:
        """Read images of each set before the first step: shards that are not there, or hold no labels, are missed now and not at the end."""
        if progress.step == 0:
            check_same_classes(data, self.train, self.val, f"probes.{self.score}")
            for shards in (self.train, self.val):
                next(iter(self._read(data, shards, 1)), None)
            if self.learns_all:
                say_if_shared(data, self.train, self.val, f"probes.{self.score}")

    @hookimpl
    def evaluate(self, branches: Branches, data: DataFactory) -> dict[str, float]:
        """`SCORE/top1`, `SCORE/random/top1`, `SCORE/pixels/top1`, and the other `metrics`: percent of `val`.  Equal on every rank.

        Raises DataError for sets that hold no image, or a class in `val` that `train` has no image of.
        """
        device = next(branches.online.parameters()).device
        seen: dict[str, See] = {"": Whole(branches.online.encoder, self.on)}
        if "random" in self.baselines:
            seen["random/"] = Whole(branches.initial().to(device), self.on)
        if "pixels" in self.baselines:
            seen["pixels/"] = Thumbnails(self.size, data.channels)
        scores: dict[str, float] = {}
        for name, see in seen.items():
            found = self._scores(see, data, device, lasting=bool(name))
            scores |= {f"{self.score}/{name}{measure}": value for measure, value in found.items()}
        return scores

    def learn(self, train: Rows, classes: int) -> Callable[[Tensor], Tensor]:
        """A classifier from the features of `train`, a row an image; its answers are ids of `train`.

        Ids lie below `classes` and may lie far apart (such as 20231105): those that occur are numbered.  Raises ValueError for an id that does not.
        """
        if int(train.y.max()) >= classes:
            raise ValueError(f"class {int(train.y.max())} among ids below {classes}")
        ids, numbers = torch.unique(train.y, return_inverse=True)
        classify, first = self.fit_numbered(Embedded(train.x, numbers, numbers), len(ids)), self.variants()[0]
        return lambda x: ids[classify(x)[first].argmax(1)]

    @abstractmethod
    def fit_numbered(self, train: Embedded, classes: int) -> Classify:
        """A number for each class of an image, by the classifier's variants; for classes 0 to `classes` - 1 that all occur."""

    def _scores(self, see: See, data: DataFactory, device: torch.device, lasting: bool) -> dict[str, float]:
        train, val = (self.embedded(see, data, shards, device, lasting) for shards in (self.train, self.val))
        if not len(train.y):
            raise DataError(f"[[evaluate]] probes.{self.score}: {self.train or '[data] shards'} holds no image.")
        if not len(val.y):
            raise DataError(f"[[evaluate]] probes.{self.score}: {self.val} holds no image.")
        classes, numbers, counts = torch.unique(train.y, return_inverse=True, return_counts=True)  # of any size: those that occur are numbered
        strange = val.y[~torch.isin(val.y, classes)]
        if len(strange):
            fault = f"{self.val} holds class {int(strange.max())}, and {self.train or '[data] shards'} no image of it"
            raise DataError(f"[[evaluate]] probes.{self.score}: {fault}. Name sets of the same classes.")
        classify = self.fit_numbered(train._replace(y=numbers), len(classes))
        return self._measured(classify, val, Truth(torch.searchsorted(classes, val.y), counts))

    def _measured(self, classify: Classify, val: Embedded, truth: Truth) -> dict[str, float]:
        """Each rank answers for its share of the rows."""
        hits: dict[str, Tensor] = {}  # variant -> [2, classes]: right at first, and among the first five
        every = torch.bincount(truth.y, minlength=len(truth.counts))
        for rows in torch.split(torch.arange(rank(), len(val.y), world(), device=val.y.device), ROWS):
            y = truth.y[rows]
            for variant, answers in classify(val.x[rows]).items():
                # a stable sort: classes without a vote are told apart by their numbers, as in DINO's scores of few neighbors
                first = answers.argsort(dim=1, descending=True, stable=True)[:, :5] == y[:, None]
                right = torch.stack([first[:, 0], first.any(1)]).long()
                hits.setdefault(variant, right.new_zeros(2, len(truth.counts))).index_add_(1, y, right)
        found: dict[str, float] = {}
        for variant in self.variants():
            right = summed(hits.get(variant, every.new_zeros(2, len(truth.counts)))).double()
            for metric in self.metrics:
                found |= {f"{name}{variant}": value for name, value in self._metric(metric, right, every, truth.counts).items()}
        return found

    def _metric(self, metric: Metric, right: Tensor, every: Tensor, shots: Tensor) -> dict[str, float]:
        """Percent; of a group without images of `val` NaN."""
        if metric == "groups":
            kinds = (shots > self.shots[1], (shots >= self.shots[0]) & (shots <= self.shots[1]), shots < self.shots[0])
            return {name: 100 * float((right[0] / every)[kind & (every > 0)].mean()) for name, kind in zip(GROUPS, kinds)}
        if metric == "per_class":
            return {metric: 100 * float((right[0] / every)[every > 0].mean())}
        return {metric: 100 * int(right[int(metric == "top5")].sum()) / int(every.sum())}

    def embedded(self, see: See, data: DataFactory, shards: str | list[str], device: torch.device, lasting: bool) -> Embedded:
        """The features of a set, computed once for all evaluations of these weights."""
        how: dict[str, Any] = {"size": self.size, "crop": self.crop and self.crop_share, "interpolation": self.interpolation}
        return embed(see, data, shards or None, lambda: self._read(data, shards, IMAGES), device, lasting, **how)

    def _read(self, data: DataFactory, shards: str | list[str], images: int) -> Iterator[PlainBatch]:
        more: dict[str, Any] = {} if self.interpolation == "bilinear" else {"interpolation": self.interpolation}
        crop = self.crop if self.crop_share == 1 else self.crop_share
        return data.plain(shards or None, size=self.size, labels=("class",), batch_size=images, crop=crop, **more)


def one_or_more(least: float) -> Any:
    """Validator: a number above `least`, or a list of such numbers, each another."""

    def check(_: Any, attribute: Any, value: float | list[float]) -> None:
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(number > least for number in numbers) or len({*numbers}) < len(numbers):
            raise ValueError(f"{attribute.name} must be > {least:g}: a number, or a list of different ones; not {value}")

    return check


def listed(value: Any) -> list[Any]:
    """A number as a list of one."""
    return value if isinstance(value, list) else [value]


