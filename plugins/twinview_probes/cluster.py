"""How well clusters that nobody named are classes: unsupervised segmentation."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

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
from twinview.values import DataFactory, Dims, PlainBatch, Progress, Step, Traits
from twinview_probes.clusters import Clusterer, FeatureClusters, HeadClusters
from twinview_probes.features import Maps, Pixels, channels, first
from twinview_probes.labels import LABELS, read_label_map
from twinview_probes.matching import match_clusters, matched_scores, occupancy
from twinview_probes.segments import segments_sheet

IMAGES = 16  # that the encoder sees at once
SCORES = ("miou", "accuracy", "mean_accuracy", "entropy", "empty", "collapsed")


@part
class Cluster:
    """Unsupervised segmentation: every pixel's cluster against its class, matched one to one (Hungarian), scored on `val`.

    Clusters are the channels of a shared [[head]], or k-means on the frozen cells of `train` where none is named.  `baselines` are k-means on
    the features of the encoder's random start, and on the raw pixels of each cell.
    """

    head: str = ""  # the [[head]] whose largest channel is a pixel's cluster; empty: k-means on features
    train: str | list[str] = ""  # shards for k-means, labels unused; empty: the run's own
    val: str | list[str]  # shards with label maps to score on
    size: tuple[int, int] = field(validator=pixels)  # height, width of the images in pixels
    crop: bool = False  # the largest central box of that shape, instead of the whole image squeezed into it
    labels: str = ""  # a label map: coco_stuff27, cityscapes27, cityscapes19, camvid11, scenes10 or a .toml file; empty: labels are classes
    classes: int = field(default=0, validator=[ge(0), le(LABELS - 1)])  # 0: those of the label map, or as many as `val` shows
    ignore: list[int] = field(factory=lambda: [255])  # labels that are no class
    clusters: int = field(default=0, validator=ge(0))  # of k-means; 0: as many as classes, or where these are not said as the head has
    levels: list[str] = field(factory=lambda: ["cells"], validator=min_len(1))  # for k-means, put behind one another
    stride: int = field(default=8, validator=gt(0))  # pixels per cell that these are brought to
    baselines: list[Literal["random", "pixels"]] = field(factory=list)  # random, pixels
    images: int = field(default=400, validator=ge(0))  # of `train`, the first; 0: all
    cells: int = field(default=64, validator=gt(0))  # drawn from each of these
    seed: int = field(default=0, validator=ge(0))  # of the cells and of k-means

    def __attrs_post_init__(self) -> None:
        if self.clusters == 1:
            raise ValueError("clusters wants two or more, or 0 for as many as classes")
        self.map = read_label_map(self.labels) if self.labels else None
        if self.map and self.classes:
            raise ValueError("classes are those of the label map; leave one of classes and labels out")
        if not self.head and not (self.clusters or self.classes or self.map):
            raise ValueError("clusters are to be counted by k-means; write clusters, classes or labels")

    @hookimpl
    def traits(self) -> Traits:
        """Needs the cells of the head, or the maps that `levels` names."""
        needs = frozenset(["cells"] if self.head else ["cells" if level == "cells" else "levels" for level in self.levels])
        of = ("", *(f"{baseline}/" for baseline in self.baselines))
        kinds = (*SCORES, *(("things", "stuff") if self.map and self.map.things else ()))
        scores = frozenset(f"cluster/{name}{score}" for name in of for score in kinds)
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
            next(iter(self._read(data, self.val, 1, labeled=True)), None)
            if self.baselines or not self.head:
                next(iter(self._read(data, self.train, 1, labeled=False)), None)

    @hookimpl
    def evaluate(self, branches: Branches, data: DataFactory) -> dict[str, float]:
        """`cluster/miou`, `accuracy`, `mean_accuracy`, with a label map `things` and `stuff`; `entropy`, `empty`, `collapsed`; of baselines too.

        Percent, all pixels of `val` that have a class, on every rank the same.  Logits are upsampled bilinearly to the labels.  Raises DataError.
        """
        scores: dict[str, float] = {}
        device = next(branches.online.parameters()).device
        for name in ("", *self.baselines):
            counts = self.count(self.clusterer(branches, data, name), data, device)
            found = matched_scores(counts, match_clusters(counts), self.map.things if self.map else ()) | occupancy(counts)
            start = f"cluster/{name}/" if name else "cluster/"
            scores |= {f"{start}{score}": value for score, value in found.items()}
        return scores

    @hookimpl
    def pictures(self, step: Step, data: DataFactory) -> dict[str, Tensor]:
        """`segments`: images of `val`, each with its clusters in the colors of the classes that they were matched to, and its labels."""
        device = next(step.branches.online.parameters()).device
        clusterer = self.clusterer(step.branches, data, "")
        counts = self.count(clusterer, data, device)
        names = self.map.names if self.map else tuple(str(i) for i in range(len(counts)))
        images, labels = self._spread(data, len(step.batch.keys))
        given = self._assign(clusterer, images.to(device), labels.shape[-2:])
        return {"segments": segments_sheet(images, given.cpu(), self._classes(labels), match_clusters(counts), names)}

    def clusterer(self, branches: Branches, data: DataFactory, baseline: str) -> Clusterer:
        """The head's clusters or k-means of the online branch (""), or k-means of a baseline."""
        device = next(branches.online.parameters()).device
        if self.head and not baseline:
            head = branches.online.find(branches.online.key(self.head, "projector"))
            return HeadClusters(branches.online.encoder, head, torch.zeros(1, data.channels, *self.size, device=device))
        if baseline == "pixels":
            return self._kmeans(Pixels(self.stride, data.channels), data, device, branches)
        encoder = branches.initial().to(device) if baseline == "random" else branches.online.encoder
        return self._kmeans(Maps(encoder, self.levels, self.stride), data, device, branches)

    def count(self, clusterer: Clusterer, data: DataFactory, device: torch.device) -> Tensor:
        """[classes, k]: pixels of `val` of all ranks by class and cluster.  Raises DataError where none has a class."""
        confusion = Confusion(LABELS, device, given=clusterer.k)
        for batch in self._read(data, self.val, IMAGES, labeled=True):
            truth = self._classes(batch.labels["map"].to(device))
            given = self._assign(clusterer, batch.images.to(device), truth.shape[-2:])
            known = truth != 255
            confusion.add(truth[known], given[known])
        confusion.gather()
        seen = confusion.counts.sum(1).nonzero()
        if not len(seen):
            raise DataError(f"[[evaluate]] probes.cluster: {self.val} holds no pixel that has a class.")
        most = int(seen.max())
        classes = len(self.map.names) if self.map else self.classes or most + 1
        if most >= classes:
            fault = f"{self.val} holds the class {most} with classes = {classes}"
            raise DataError(f"[[evaluate]] probes.cluster: {fault}. Write classes = {most + 1}, or put {most} into ignore.")
        return confusion.counts[:classes]

    def _kmeans(self, dense: Maps | Pixels, data: DataFactory, device: torch.device, branches: Branches) -> FeatureClusters:
        k = self.clusters or (len(self.map.names) if self.map else self.classes) or self.clusterer(branches, data, "").k
        batches = first(self._read(data, self.train, IMAGES, labeled=False), self.images)
        return FeatureClusters(dense, batches, k, cells=self.cells, seed=self.seed, device=device)

    def _spread(self, data: DataFactory, rows: int) -> tuple[Tensor, Tensor]:
        """Up to `rows` images of `val` and their labels, from all over it: neighbors are often the next frame of a drive."""
        found = [(image, label) for b in self._read(data, self.val, 4, labeled=True) for image, label in zip(b.images[:1], b.labels["map"][:1])]
        chosen = [found[i * len(found) // min(rows, len(found))] for i in range(min(rows, len(found)))]
        return torch.stack([image for image, _ in chosen]), torch.stack([label for _, label in chosen])

    def _assign(self, clusterer: Clusterer, images: Tensor, size: tuple[int, ...]) -> Tensor:
        return F.interpolate(clusterer(images), size=list(size), mode="bilinear", align_corners=False).argmax(1)

    def _classes(self, labels: Tensor) -> Tensor:
        """Classes of label maps [B, H, W], 255 where there is none.  Raises DataError for a label that no class can have."""
        labels = torch.where(torch.isin(labels, torch.tensor(self.ignore, device=labels.device)), 255, labels)
        most = int(labels.max()) if labels.numel() else 0
        if most >= LABELS:
            raise DataError(f"[[evaluate]] probes.cluster: {self.val} holds the label {most}; they go up to {LABELS - 1}. Put {most} into ignore.")
        return self.map(labels) if self.map else labels

    def _read(self, data: DataFactory, shards: str | list[str], images: int, *, labeled: bool) -> Iterator[PlainBatch]:
        return data.plain(shards or None, size=self.size, labels=("map",) if labeled else (), batch_size=images, crop=self.crop)
