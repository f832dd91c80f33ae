from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinview import recipe
from twinview.branch import Branch, Branches
from twinview.errors import DataError, RecipeError
from twinview.values import Batch, DataFactory, Dims, EncoderSpec, Features, Level, PlainBatch, Progress, Size
from twinview_probes import parts
from twinview_probes.segment import Segment

SIZE = (20, 36)  # no multiple of 8
COLORS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])


class Colors(nn.Module):
    """Features that tell the three colors apart, at strides 4 and 8, beside noise; `blind` gives noise alone."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)
        self.blind = blind
        levels = {"c2": Level(5, 4), "c3": Level(5, 8)}
        self.spec = EncoderSpec(pooled=5, cells=levels["c3"], levels=levels)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        assert not self.training and not torch.is_grad_enabled()
        x = self.conv(images) * (0 if self.blind else 1)
        height, width = images.shape[-2:]
        maps = {n: nn.functional.adaptive_avg_pool2d(x, (-(-height // s.stride), -(-width // s.stride))) for n, s in self.spec.levels.items()}
        return Features(cells=maps["c3"], pooled=x.mean((2, 3)), levels=maps)


class Stripes(DataFactory):
    """A data factory: images of three stripes, whose colors are classes 0, 1 and 2; `odd` relabels the last row of pixels."""

    channels = 3

    def __init__(self, images: Mapping[str, int], rank: int = 0, world: int = 1, odd: int = 2, noise: float = 0.0) -> None:
        self.images, self.rank, self.world, self.odd, self.noise = images, rank, world, odd, noise

    def plain(
        self, shards: str | Sequence[str] | None = None, *, size: Size, labels: Sequence[str] = (), batch_size: int = 64,
        crop: bool | float = False, interpolation: str = "bilinear",
    ) -> Iterator[PlainBatch]:
        assert isinstance(shards, str) and size == SIZE and tuple(labels) == ("map",)
        return self._batches(list(range(self.images[shards]))[self.rank :: self.world], batch_size)

    def _batches(self, mine: list[int], batch_size: int) -> Iterator[PlainBatch]:
        for at in range(0, len(mine), batch_size):
            ids = mine[at : at + batch_size]
            made = [self._image(i) for i in ids]
            images, maps = torch.stack([m[0] for m in made]), torch.stack([m[1] for m in made])
            yield PlainBatch(tuple(map(str, ids)), torch.tensor(ids), images, {"map": maps})

    def _image(self, i: int) -> tuple[Tensor, Tensor]:
        stripes = torch.roll(torch.arange(3), i).repeat_interleave(12)[: SIZE[1]]
        labels = stripes.expand(SIZE).clone()
        image = COLORS[labels].permute(2, 0, 1) + self.noise * torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(i))
        labels[-1] = torch.where(labels[-1] == 2, self.odd, labels[-1])
        return image, labels

    def class_names(self, shards: str | Sequence[str] | None = None) -> tuple[str, ...]:
        return ()

    def views(self, epoch: int) -> Iterator[Batch]:
        raise AssertionError("the probe reads whole images")


def branches(seed: int = 0) -> Branches:
    torch.manual_seed(seed)
    online = Branch(Colors(), {}, {}, {}).eval()
    return Branches(online, online, lambda: Colors(blind=True))


def probe(**options: Any) -> Segment:
    small: dict[str, Any] = {"train": "train", "val": "val", "size": SIZE, "levels": ["c2"], "stride": 4, "steps": 120, "batch": 64, "lr": 0.1}
    return Segment(**{**small, **options})


@torch.no_grad()
def score(data: Stripes | None = None, **options: Any) -> dict[str, float]:
    return probe(**options).evaluate(branches(), data or Stripes({"train": 6, "val": 4}))


def test_features_that_separate_the_classes_score_100() -> None:
    data = Stripes({"train": 6, "val": 4})
    scores = score(data, baselines=["random", "pixels"])
    assert list(scores) == [f"segment/{who}{what}" for who in ("", "random/", "pixels/") for what in ("miou", "accuracy")]
    assert scores["segment/miou"] > 99 and scores["segment/accuracy"] > 99
    assert scores["segment/pixels/miou"] > 99
    assert scores["segment/random/miou"] < 34  # features that never change: one class for every pixel


def test_the_same_seed_gives_the_same_scores_and_another_does_not() -> None:
    data, options = Stripes({"train": 6, "val": 4}, noise=4.0), {"baselines": ["pixels"], "cells": 9, "steps": 20, "levels": ["c2", "c3"]}
    torch.manual_seed(1)
    first = score(data, **options)
    torch.manual_seed(2)
    assert score(data, **options) == first
    assert score(data, **options, seed=1) != first
    assert first["segment/miou"] < 99


def test_ignored_labels_are_neither_learnt_nor_scored() -> None:
    data = Stripes({"train": 6, "val": 4}, odd=255)
    assert score(data)["segment/miou"] > 99
    with torch.no_grad():
        counted = probe(ignore=[255, 0]).score(*fitted(data, ignore=[255, 0]))
    assert counted.counts[0].sum() == 0 and counted.counts[255].sum() == 0
    maps = torch.stack([data._image(i)[1] for i in range(4)])
    assert counted.counts.sum() == ((maps == 1) | (maps == 2)).sum()


def fitted(data: Stripes, **options: Any) -> tuple[Any, Any, Stripes, torch.device]:
    from twinview_probes.features import Maps

    with torch.no_grad():
        dense = Maps(branches().online.encoder, ["c2"], 4)
        part = probe(**options)
        cpu = torch.device("cpu")
        return dense, part.fit(dense, data, cpu), data, cpu


def test_classes_are_learnt_from_the_labels_or_given() -> None:
    data = Stripes({"train": 6, "val": 4})
    assert fitted(data)[1].weight.shape == (3, 5)
    assert fitted(data, classes=7)[1].weight.shape == (7, 5)
    with pytest.raises(DataError, match=r"train holds the label 2 with classes = 2\. Write classes = 3, or put 2 into ignore\."):
        score(data, classes=2)
    with pytest.raises(DataError, match=r"val holds the label 300; classes go up to 255\. Put 300 into ignore\."):
        score(Stripes({"train": 6, "val": 4}, odd=300))
    with pytest.raises(DataError, match=r"val holds no labeled pixel"):
        score(Stripes({"train": 6, "val": 0}))
    with pytest.raises(DataError, match=r"train holds no labeled pixel outside ignore = \[0, 1, 2\]"):
        score(data, ignore=[0, 1, 2])


def test_a_wrong_level_is_refused_when_the_encoders_sizes_are_known() -> None:
    dims = Dims(encoder=Colors().spec, grids=(), sizes=(), pairs=(), global_batch=1, dataset_size=1)
    probe(levels=["cells"]).check(dims, Stripes({}))
    with pytest.raises(RecipeError, match=r"levels: the encoder gives no map 'c4'\. There is: cells, c2, c3\."):
        probe(levels=["c3", "c4"]).check(dims, Stripes({}))
    assert probe().traits().needs == {"levels"} and probe(levels=["cells"]).traits().needs == {"cells"}


def test_both_sets_are_opened_before_the_first_step() -> None:
    with pytest.raises(KeyError, match="val"):
        probe().before_epoch(Stripes({"train": 2}), Progress(0, 10, 0, 0.0))
    probe().before_epoch(Stripes({}), Progress(5, 10, 1, 0.5))


def test_the_table_of_a_recipe_is_read() -> None:
    table = {"train": "a.tar", "val": ["b.tar", "c.tar"], "size": [180, 240], "ignore": [11, 255], "baselines": ["random"]}
    made = recipe.structure(table, parts()["segment"], "[[evaluate]] probes.segment")
    assert (made.size, made.ignore, made.levels, made.val) == ((180, 240), [11, 255], ["c3", "c4", "c5"], ["b.tar", "c.tar"])
    for change, message in (
        ({"baselines": ["raw"]}, "wants one of 'random', 'pixels', not 'raw'"),
        ({"levels": []}, "levels"),
        ({"stride": 0}, "stride must be > 0"),
        ({"size": [0, -5]}, "[[evaluate]] probes.segment: size wants a height and a width above 0, not [0, -5]"),
        ({"size": [180, 0]}, "not [180, 0]"),
        ({"step": 3}, "Did you mean 'steps'?"),
    ):
        with pytest.raises(RecipeError) as error:
            recipe.structure({**table, **change}, parts()["segment"], "[[evaluate]] probes.segment")
        assert message in str(error.value) and "\n" not in str(error.value)


def hard(rank: int = 0, world: int = 1) -> dict[str, float]:
    return score(Stripes({"train": 5, "val": 3}, rank, world, noise=4.0), baselines=["pixels"], cells=9, steps=20, levels=["c2", "c3"])


def one_of_two(rank: int) -> dict[str, float]:
    return hard(rank, 2)


def test_two_ranks_agree_with_each_other_and_with_one(two_ranks: Any) -> None:
    first, second = two_ranks(one_of_two)
    alone = hard()
    assert first == second
    assert first == pytest.approx(alone, abs=0.2)


def test_neighbouring_cells_vote() -> None:
    from twinview_probes.segment import Neighbors

    torch.manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(30, 5), dim=1)
    labels = torch.randint(3, (30,))
    maps = torch.randn(2, 5, 3, 4)
    found = Neighbors(bank, labels, 3, 4, 0.1).maps(maps)
    assert found.shape == (2, 3, 3, 4) and torch.allclose(found.sum(1), torch.ones(2, 3, 4))
    cell = torch.nn.functional.normalize(maps[1, :, 2, 1], dim=0)
    cosines = bank @ cell
    near = cosines.topk(4).indices
    votes = torch.stack([(cosines[near] / 0.1).exp()[labels[near] == c].sum() for c in range(3)])
    torch.testing.assert_close(found[1, :, 2, 1], votes / votes.sum())


@torch.no_grad()
def test_the_probe_of_neighbours_needs_no_training() -> None:
    from twinview_probes.segment import CellNeighbors

    part = CellNeighbors(train="train", val="val", size=SIZE, levels=["c2"], stride=4, k=3, cells=40, baselines=["random", "pixels"])
    scores = part.evaluate(branches(), Stripes({"train": 6, "val": 4}))
    named = {f"cells/{who}{what}" for who in ("", "random/", "pixels/") for what in ("miou", "accuracy")}
    assert scores.keys() == named and part.traits().scores == frozenset(named)
    assert scores["cells/miou"] > 95 and scores["cells/pixels/miou"] > 95 and scores["cells/random/miou"] < 34
