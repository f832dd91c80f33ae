"""The signals as evaluations."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, cast

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor, nn

from twinview.branch import Branches
from twinview.errors import DataError, RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops.checks import area_span, pixels
from twinview.ops.kmeans import spherical_kmeans
from twinview.ops.ranks import gather_rows
from twinview.values import DataFactory, Dims, EncoderSpec, Features, PlainBatch, Traits
from twinview_signals import measures
from twinview_signals.crops import crops

IMAGES = 64  # that the encoder sees at once, its crops counted


@part
class Signal(ABC):
    """What the signals share: which images, which features, and the random start beside them.  No label is read."""

    val: str | list[str] = ""  # shards; empty: the run's own
    size: tuple[int, int] = field(validator=pixels)  # height, width of the images in pixels
    crop: bool = False  # the largest central box of that shape, instead of the whole image squeezed into it
    on: str = "pooled"  # features: pooled, or the mean of "cells" or of a level such as "c4"
    images: int = field(default=5000, validator=ge(0))  # of the set, the first; 0: all
    baselines: list[Literal["random"]] = field(factory=list)  # the encoder's random start

    score: ClassVar[str]  # the first word of the scores
    measured: ClassVar[tuple[str, ...]] = ("value",)
    least: ClassVar[int] = 2  # images

    @hookimpl
    def traits(self) -> Traits:
        """Needs the features that `on` names."""
        of = ("", *(f"{baseline}/" for baseline in self.baselines))
        scores = frozenset(f"{self.score}/{name}{measure}" for name in of for measure in self.measured)
        return Traits(needs=frozenset([self.on if self.on in ("pooled", "cells") else "levels"]), scores=scores, instead='Write on="cells".')

    @hookimpl
    def check(self, dims: Dims, data: DataFactory) -> None:
        """Wrong features, or shards that are not there, are refused before the training and not after it."""
        _width(dims.encoder, self.on)
        if self.val:
            data.require(self.val)

    @hookimpl
    def evaluate(self, branches: Branches, data: DataFactory) -> dict[str, float]:
        """The signal of the online branch, and of the random start where `baselines` says so.  Equal on every rank."""
        device = next(branches.online.parameters()).device
        encoders = {"": branches.online.encoder, **({"random/": branches.initial().to(device)} if self.baselines else {})}
        scores: dict[str, float] = {}
        for name, encoder in encoders.items():
            x = self._features(encoder, data, device, lasting=bool(name))
            if len(x) < self.least:
                raise DataError(f"[[evaluate]] signals.{self.score}: {self.val or '[data] shards'} holds {len(x)} images, and it wants {self.least}.")
            scores |= {f"{self.score}/{name}{measure}": value for measure, value in zip(self.measured, self.measure(x))}
        return scores

    @abstractmethod
    def measure(self, x: Tensor) -> tuple[float, ...]:
        """Features [N, views, C] -> numbers, in the order of `measured`."""

    @property
    def views(self) -> int:
        """Crops of each image; 0: the image itself."""
        return 0

    @property
    def scale(self) -> tuple[float, float]:
        """Share of the area that a crop has."""
        return (1.0, 1.0)

    @property
    def crop_seed(self) -> int:
        """Of the crops."""
        return 0

    def _features(self, encoder: nn.Module, data: DataFactory, device: torch.device, lasting: bool) -> Tensor:
        encoder.eval()

        def make() -> dict[str, Tensor]:
            xs, ids = [torch.empty(0, max(self.views, 1), _width(cast(EncoderSpec, encoder.spec), self.on), device=device)], []
            for batch in self._batches(data):
                seen = crops(batch, self.views, self.scale, self.size, self.crop_seed) if self.views else batch.images
                with torch.no_grad():
                    features: Features = encoder(seen.to(device))
                found = features.at(self.on).float()
                xs.append((found if found.ndim == 2 else found.mean((2, 3))).view(len(batch.ids), -1, found.shape[1]))
                ids.append(batch.ids.to(device))
            every = gather_rows(torch.cat(ids or [torch.empty(0, dtype=torch.int64, device=device)]))
            return {"x": gather_rows(torch.cat(xs))[every.argsort(stable=True)]}

        how = {"size": self.size, "crop": self.crop, "images": self.images, "views": self.views, "scale": self.scale, "seed": self.crop_seed}
        return data.stored(f"signals {self.on}", [encoder], self.val or None, make, lasting=lasting, **how)["x"].to(device)

    def _batches(self, data: DataFactory) -> Iterator[PlainBatch]:
        for batch in data.plain(self.val or None, size=self.size, batch_size=max(1, IMAGES // max(self.views, 1)), crop=self.crop):
            n = int((batch.ids < self.images).sum()) if self.images else len(batch.ids)
            if n:
                yield PlainBatch(batch.keys[:n], batch.ids[:n], batch.images[:n], {})
            if n < len(batch.ids):
                return


@part
class RankMe(Signal):
    """RankMe (Garrido et al. 2023): the smooth rank of features of many images; more is better among runs of one method."""

    score = "rankme"

    def measure(self, x: Tensor) -> tuple[float, ...]:
        """`rankme/value`, 1 to the width."""
        return (measures.rankme(x[:, 0]),)


@part
class AlphaReQ(Signal):
    """alpha-ReQ (Agrawal et al. 2022): how steeply the spectrum of features falls; about 1 was best in their figures."""

    score = "alphareq"
    first: int = field(default=5, validator=gt(0))  # eigenvalues that the line goes through, counted from 1
    last: int = field(default=50, validator=gt(1))  # the last of them

    def measure(self, x: Tensor) -> tuple[float, ...]:
        """`alphareq/value`."""
        return (measures.alpha_req(x[:, 0], self.first, self.last),)


@part
class OfViews(Signal):
    """What signals of several crops of each image share."""

    images: int = field(default=1000, validator=ge(0))  # of the set, the first; 0: all
    crop_scale: tuple[float, float] = field(default=(0.3, 1.0), validator=area_span)  # share of the area that a crop has
    seed: int = field(default=0, validator=ge(0))  # of the crops

    @property
    def scale(self) -> tuple[float, float]:
        """The option `crop_scale`."""
        return self.crop_scale

    @property
    def crop_seed(self) -> int:
        """The option `seed`."""
        return self.seed


@part
class Lidar(OfViews):
    """LiDAR (Thilak et al. 2024): the smooth rank of what tells images apart beyond what tells views of one image apart; more is better."""

    score = "lidar"
    crops: int = field(default=10, validator=gt(1))  # of each image

    @property
    def views(self) -> int:
        """The option `crops`."""
        return self.crops

    def measure(self, x: Tensor) -> tuple[float, ...]:
        """`lidar/value`."""
        return (measures.lidar(x),)


@part
class Uniformity(OfViews):
    """Alignment and uniformity on the unit sphere (Wang and Isola 2020); both are losses: less is better."""

    score = "sphere"
    measured = ("alignment", "uniformity")

    @property
    def views(self) -> int:
        """Two crops of each image."""
        return 2

    def measure(self, x: Tensor) -> tuple[float, ...]:
        """`sphere/alignment`, 0 to 4, and `sphere/uniformity`, at most 0."""
        return measures.alignment(x), measures.uniformity(x[:, 0])


@part
class Occupancy(Signal):
    """How evenly k-means on unit features fills its clusters."""

    score = "occupancy"
    measured = ("entropy", "empty")
    clusters: int = field(default=100, validator=gt(1))  # of k-means

    @hookimpl
    def check(self, dims: Dims, data: DataFactory) -> None:
        """More clusters than images are refused before the training."""
        super().check(dims, data)
        if self.images and self.clusters > self.images:
            raise RecipeError(f"[[evaluate]] signals.occupancy: clusters = {self.clusters} for images = {self.images}. Write fewer clusters.")

    def measure(self, x: Tensor) -> tuple[float, ...]:
        """`occupancy/entropy`, over log k, and `occupancy/empty`, a share."""
        if len(x) < self.clusters:
            raise DataError(f"[[evaluate]] signals.occupancy: clusters = {self.clusters} for {len(x)} images. Write fewer clusters.")
        _, assigned = spherical_kmeans((x[:, 0] - x[:, 0].mean(0))[None], self.clusters, x.new_zeros(1), iterations=20)
        return measures.occupancy(torch.bincount(assigned[0], minlength=self.clusters))


def _width(spec: EncoderSpec, on: str) -> int:
    """Channels of `pooled`, `cells` or a level.  Raises RecipeError where the encoder gives no such features."""
    widths = {"pooled": spec.pooled, "cells": spec.cells.channels, **{name: level.channels for name, level in spec.levels.items()}}
    if on not in widths:
        raise RecipeError(f"[[evaluate]] on: the encoder gives no {on!r}. There is: {', '.join(widths)}.")
    return widths[on]
