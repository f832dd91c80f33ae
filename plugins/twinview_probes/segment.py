"""How well images are segmented by frozen dense features: by a linear layer, and by nearest neighbors among cells."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from attrs import field
from attrs.validators import ge, gt, le, min_len
from torch import Tensor
from torch.nn import functional as F

from twinview.branch import Branches
from twinview.errors import DataError
from twinview.hooks import hookimpl, part
from twinview.ops.checks import pixels
from twinview.ops.confusion import Confusion
from twinview.values import DataFactory, Dims, PlainBatch, Progress, Traits
from twinview_probes.features import Cells, Dense, FrozenDense, Maps, Pixels, channels, first, sample_cells
from twinview_probes.knn import votes
from twinview_probes.linear import Linear, fit
from twinview_probes.sets import check_same_classes, say_if_shared

IMAGES = 16  # that the encoder sees at once
ROWS = 4096  # cells whose neighbors are looked for at once
LABELS = 256  # that the scores tell apart


class Classifier(Protocol):
    """Maps [B, C, h, w] -> a number for each class, [B, classes, h, w]."""

    def maps(self, x: Tensor) -> Tensor:
        """The numbers."""
        ...


@part
class DenseProbe(ABC):
    """What probes of cells share: the images, the features, the baselines, mIoU and accuracy over all labeled pixels of `val`.

    `baselines` are scored in the same way: `random`, the encoder at its random start, and `pixels`, the raw pixels of each cell.
    """

    word: ClassVar[str]  # the first of the scores

    train: str | list[str] = ""  # shards with label maps to fit on; empty: the run's own
    val: str | list[str]  # shards with label maps to score on
    size: tuple[int, int] = field(validator=pixels)  # height, width of the images in pixels
    levels: list[str] = field(factory=lambda: ["c3", "c4", "c5"], validator=min_len(1))  # put behind one another; or "cells"
    stride: int = field(default=8, validator=gt(0))  # pixels per cell that all levels are brought to
    classes: int = field(default=0, validator=[ge(0), le(LABELS)])  # 0: as many as `train` shows
    ignore: list[int] = field(factory=lambda: [255])  # labels that are no class
    baselines: list[Literal["random", "pixels"]] = field(factory=list)  # random, pixels
    images: int = field(default=400, validator=ge(0))  # of `train`, the first; 0: all
    cells: int = field(default=256, validator=gt(0))  # drawn from each of these; memory: images x cells x channels x 4 bytes
    seed: int = field(default=0, validator=ge(0))  # of the cells drawn

    @hookimpl
    def traits(self) -> Traits:
        """Needs the maps that `levels` names."""
        of = ("", *(f"{baseline}/" for baseline in self.baselines))
        scores = frozenset(f"{self.word}/{name}{score}" for name in of for score in ("miou", "accuracy"))
        needs = frozenset("cells" if level == "cells" else "levels" for level in self.levels)
        return Traits(needs=needs, scores=scores, instead='Write levels=["cells"].')

    @hookimpl
    def check(self, dims: Dims, data: DataFactory) -> None:
        """A wrong level, or shards that are not there, are refused before the training and not after it."""
        for level in self.levels:
            channels(dims.encoder, level)
        for shards in filter(None, (self.train, self.val)):
            data.require(shards)

    @hookimpl
    def before_epoch(self, data: DataFactory, progress: Progress) -> None:
        """Read an image of each set before the first step: shards that are not there are missed now and not at the end of the run."""
        if progress.step == 0:
            check_same_classes(data, self.train, self.val, self.place)
            for shards in (self.train, self.val):
                next(iter(self._read(data, shards, 1)), None)
            say_if_shared(data, self.train, self.val, self.place)

    @hookimpl
    def evaluate(self, branches: Branches, data: DataFactory) -> dict[str, float]:
        """`WORD/miou` and `WORD/accuracy` of the online branch, and of each baseline as `WORD/random/miou`; in percent.

        mIoU is the mean over classes of all labeled pixels of `val`; logits are upsampled bilinearly to the labels.  Equal on every rank.
        Raises DataError for shards without labeled pixels or with labels beyond `classes`.
        """
        scores: dict[str, float] = {}
        device = next(branches.online.parameters()).device
        seen: dict[str, FrozenDense] = {"": Maps(branches.online.encoder, self.levels, self.stride)}
        if "random" in self.baselines:
            seen["random/"] = Maps(branches.initial().to(device), self.levels, self.stride)
        if "pixels" in self.baselines:
            seen["pixels/"] = Pixels(self.stride, data.channels)
        for name, dense in seen.items():
            confusion = self.score(dense, self.fit(dense, data, device, lasting=bool(name)), data, device)
            scores[f"{self.word}/{name}miou"] = 100 * confusion.miou()
            scores[f"{self.word}/{name}accuracy"] = 100 * confusion.accuracy()
        return scores

    def fit(self, dense: FrozenDense, data: DataFactory, device: torch.device, lasting: bool = False) -> Classifier:
        """The classifier of `dense` features of `train`, whose cells are drawn once for all probes.  `lasting`: of weights that stay as they are."""
        ignore = torch.tensor(self.ignore, device=device, dtype=torch.int64)

        def make() -> dict[str, Tensor]:
            batches = first(self._read(data, self.train, IMAGES), self.images)
            return sample_cells(dense, batches, cells=self.cells, ignore=ignore, seed=self.seed)._asdict()

        how = {name: getattr(self, name) for name in ("size", "levels", "stride", "ignore", "images", "cells", "seed")}
        found = data.stored(f"probes.cells {type(dense).__name__}", dense.modules, self.train or None, make, lasting=lasting, **how)
        cells = Cells(**{name: value.to(device) for name, value in found.items()})
        if not len(cells.y):
            raise DataError(f"[[evaluate]] {self.place}: {self._fitted_on} holds no labeled pixel outside ignore = {self.ignore}.")
        self._check(cells.y, self._fitted_on)
        return self.learn(cells, self.classes or int(cells.y.max()) + 1)

    @abstractmethod
    def learn(self, cells: Cells, classes: int) -> Classifier:
        """The classifier of drawn cells."""

    def score(self, dense: Dense, linear: Classifier, data: DataFactory, device: torch.device) -> Confusion:
        """Counts over all labeled pixels of `val`, of all ranks."""
        confusion = Confusion(LABELS, device)
        ignore = torch.tensor(self.ignore, device=device, dtype=torch.int64)
        for batch in self._read(data, self.val, IMAGES):
            truth = batch.labels["map"].to(device)
            logits = linear.maps(dense(batch.images.to(device)))
            given = F.interpolate(logits, size=truth.shape[-2:], mode="bilinear", align_corners=False).argmax(1)
            known = ~torch.isin(truth, ignore)
            self._check(truth[known], self.val)
            confusion.add(truth[known], given[known])
        confusion.gather()
        if not confusion.counts.any():
            raise DataError(f"[[evaluate]] {self.place}: {self.val} holds no labeled pixel outside ignore = {self.ignore}.")
        return confusion

    @property
    def place(self) -> str:
        """Of the part, as messages name it."""
        return f"probes.{self.word}"

    @property
    def _fitted_on(self) -> str | list[str]:
        return self.train or "[data] shards"

    def _read(self, data: DataFactory, shards: str | list[str], images: int) -> Iterator[PlainBatch]:
        return data.plain(shards or None, size=self.size, labels=("map",), batch_size=images)

    def _check(self, labels: Tensor, shards: str | list[str]) -> None:
        most = int(labels.max()) if len(labels) else 0
        if most >= LABELS:
            raise DataError(f"[[evaluate]] {self.place}: {shards} holds the label {most}; classes go up to {LABELS - 1}. Put {most} into ignore.")
        if self.classes and most >= self.classes:
            fault = f"{shards} holds the label {most} with classes = {self.classes}"
            raise DataError(f"[[evaluate]] {self.place}: {fault}. Write classes = {most + 1}, or put {most} into ignore.")


@part
class Segment(DenseProbe):
    """Linear segmentation probe: a 1x1 convolution on frozen, standardized features of the online branch, scored on `val`."""

    word = "segment"
    steps: int = field(default=600, validator=gt(0))  # of AdamW
    batch: int = field(default=2048, validator=gt(0))  # cells a step
    lr: float = field(default=0.03, validator=gt(0))  # at the start; cosine to 0
    weight_decay: float = field(default=0.0, validator=ge(0))  # of AdamW

    def learn(self, cells: Cells, classes: int) -> Linear:
        """The linear layer."""
        return fit(cells, classes, steps=self.steps, batch=self.batch, lr=self.lr, weight_decay=self.weight_decay, seed=self.seed)


@part
class CellNeighbors(DenseProbe):
    """Nearest cells by cosine, each voting with weight exp(cosine / temperature): segmentation without any training, scored on `val`."""

    word = "cells"
    cells: int = field(default=64, validator=gt(0))  # drawn from each image of `train`; memory: images x cells x channels x 4 bytes
    k: int = field(default=20, validator=gt(0))  # neighbors that vote
    temperature: float = field(default=0.07, validator=gt(0))  # of the votes

    def learn(self, cells: Cells, classes: int) -> Neighbors:
        """The cells that vote, in the order of the images."""
        return Neighbors(F.normalize(cells.x[cells.order], dim=1), cells.y[cells.order], classes, self.k, self.temperature)


class Neighbors(NamedTuple):
    """Votes of the nearest of labeled cells."""

    bank: Tensor  # [N, C], of length 1
    labels: Tensor  # [N]
    classes: int
    k: int
    temperature: float

    def maps(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> shares of the votes, [B, classes, h, w]."""
        found = []
        for rows in torch.split(F.normalize(x.movedim(1, -1).flatten(0, 2), dim=1), ROWS):
            near, places = (rows @ self.bank.T).topk(min(self.k, len(self.bank)))
            given = votes(near, self.labels[places], self.classes, self.temperature)
            found.append(given / given.sum(1, keepdim=True))
        return torch.cat(found).view(len(x), *x.shape[2:], self.classes).movedim(-1, 1)
