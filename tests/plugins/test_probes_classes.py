from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview import recipe
from twinview.branch import Branch, Branches
from twinview.errors import DataError, RecipeError
from twinview.values import Batch, DataFactory, Dims, EncoderSpec, Features, Level, PlainBatch, Progress, Size
from twinview_probes import parts
from twinview_probes.classes import Classes
from twinview_probes.features import Cells
from twinview_probes.images import Thumbnails
from twinview_probes.knn import Knn
from twinview_probes.linear_probe import Linear

SIZE = (24, 32)
MEANS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])


class Means(nn.Module):
    """The mean color of each quarter; `blind` gives the same for every image."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0 if blind else 1.0))
        self.spec = EncoderSpec(pooled=3, cells=Level(3, 16), levels={"c4": Level(3, 16)})

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        assert not self.training and not torch.is_grad_enabled()
        cells = F.adaptive_avg_pool2d(images, (2, 2)) * self.scale
        return Features(cells=cells, pooled=cells.mean((2, 3)), levels={"c4": cells})


class Colored(DataFactory):
    """A data factory: image i is of class i % 3 and of its color, under noise."""

    channels = 3

    def __init__(self, images: Mapping[str, int], noise: float = 0.1, rank: int = 0, world: int = 1) -> None:
        self.images, self.noise, self.rank, self.world = images, noise, rank, world

    def plain(
        self, shards: str | Sequence[str] | None = None, *, size: Size, labels: Sequence[str] = (), batch_size: int = 64, crop: bool | float = False,
        interpolation: str = "bilinear",
    ) -> Iterator[PlainBatch]:
        assert isinstance(shards, str) and size == SIZE and tuple(labels) == ("class",) and not crop
        return self._batches(list(range(self.images[shards]))[self.rank :: self.world], batch_size, 1000 * len(shards))

    def _batches(self, mine: list[int], batch_size: int, seed: int) -> Iterator[PlainBatch]:
        for at in range(0, len(mine), batch_size):
            ids = torch.tensor(mine[at : at + batch_size])
            noise = torch.stack([torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(seed + int(i))) for i in ids])
            noise += 3 * noise.mean((2, 3), keepdim=True) * SIZE[0]  # of the whole image too
            classes = ids % 3
            yield PlainBatch(tuple(map(str, ids)), ids, MEANS[classes][..., None, None] + self.noise * noise, {"class": classes})

    def class_names(self, shards: str | Sequence[str] | None = None) -> tuple[str, ...]:
        return ()

    def views(self, epoch: int) -> Iterator[Batch]:
        raise AssertionError("the probe reads whole images")


def branches() -> Branches:
    online = Branch(Means(), {}, {}, {}).eval()
    return Branches(online, online, lambda: Means(blind=True))


def probe(kind: type[Classes], **options: Any) -> Any:
    small = {"steps": 60, "batch": 32, "lr": 0.1} if kind is Linear else {"k": 5}
    return kind(**{"train": "train", "val": "val", "size": SIZE, **small, **options})


@torch.no_grad()
def score(kind: type[Classes], data: Colored | None = None, **options: Any) -> dict[str, float]:
    found: dict[str, float] = probe(kind, **options).evaluate(branches(), data or Colored({"train": 30, "val": 9}))
    return found


@pytest.mark.parametrize("kind", [Knn, Linear])
@pytest.mark.parametrize("on", ["pooled", "cells", "c4"])
def test_features_that_separate_the_classes_score_100_and_blind_ones_by_chance(kind: type[Classes], on: str) -> None:
    word = kind.score
    scores = score(kind, baselines=["random", "pixels"], on=on)
    assert list(scores) == [f"{word}/top1", f"{word}/random/top1", f"{word}/pixels/top1"]
    assert scores[f"{word}/top1"] == scores[f"{word}/pixels/top1"] == 100
    assert scores[f"{word}/random/top1"] == pytest.approx(100 / 3)


def test_neighbours_vote_as_published() -> None:
    torch.manual_seed(0)
    x, y, queries = torch.randn(40, 6), torch.randint(4, (40,)), torch.randn(25, 6)
    given = probe(Knn, k=7, temperature=0.3).learn(Cells(x, y, torch.arange(40)), 4)(queries)
    for q, answer in zip(queries, given):
        cosines = [float(F.cosine_similarity(q, row, dim=0)) for row in x]
        near = sorted(range(40), key=lambda i: -cosines[i])[:7]
        votes = [sum(torch.tensor(cosines[i] / 0.3).exp().item() for i in near if y[i] == c) for c in range(4)]
        assert votes.index(max(votes)) == int(answer)
    sharp = probe(Knn, k=400, temperature=1e-4).learn(Cells(x, y, torch.arange(40)), 4)(queries)  # the nearest alone, and no overflow
    nearest = (F.normalize(queries, dim=1) @ F.normalize(x, dim=1).T).argmax(1)
    assert torch.equal(sharp, y[nearest])


def test_sets_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(DataError, match=r"probes.knn: val holds class 2, and train no image of it\. Name sets of the same classes"):
        score(Knn, Colored({"train": 2, "val": 9}))
    with pytest.raises(DataError, match="probes.linear: val holds no image"):
        score(Linear, Colored({"train": 9, "val": 0}))
    with pytest.raises(DataError, match="probes.linear: train holds no image"):
        score(Linear, Colored({"train": 0, "val": 3}))


def test_thumbnails_are_means_of_pixels() -> None:
    images = torch.arange(2 * 3 * 64 * 16.0).view(2, 3, 64, 16)
    see = Thumbnails((64, 16), 3)
    assert see(images).shape == (2, see.channels, 1, 1) and see.channels == 3 * 32 * 16
    assert torch.equal(see(images).view(2, 3, 32, 16), images.view(2, 3, 32, 2, 16).mean(3))


def test_needs_and_wrong_features() -> None:
    assert probe(Knn).traits().needs == {"pooled"} and probe(Knn, on="cells").traits().needs == {"cells"}
    assert probe(Linear, on="c4", train="").traits().needs == {"levels", "labels"}
    dims = Dims(encoder=Means().spec, grids=(), sizes=(), pairs=(), global_batch=1, dataset_size=1)
    probe(Knn, on="c4").check(dims, Colored({}))
    with pytest.raises(RecipeError, match=r"on: the encoder gives no 'c3'\. There is: pooled, cells, c4\."):
        probe(Linear, on="c3").check(dims, Colored({}))


def test_both_sets_are_opened_before_the_first_step() -> None:
    with pytest.raises(KeyError, match="val"):
        probe(Knn).before_epoch(Colored({"train": 2}), Progress(0, 10, 0, 0.0))
    probe(Knn).before_epoch(Colored({}), Progress(5, 10, 1, 0.5))


def test_the_table_of_a_recipe_is_read() -> None:
    table: dict[str, Any] = {"train": "a.tar", "val": ["b.tar", "c.tar"], "size": [32, 32], "baselines": ["random", "pixels"]}
    for name, change, message in (
        ("knn", {"k": 0}, "k must be > 0"),
        ("knn", {"temperature": 0.0}, "temperature must be > 0"),
        ("linear", {"step": 3}, "Did you mean 'steps'?"),
        ("linear", {"size": [0, 3]}, "size wants a height and a width above 0"),
    ):
        made = recipe.structure(table, parts()[name], f"[[evaluate]] probes.{name}")
        assert made.size == (32, 32) and made.val == ["b.tar", "c.tar"]
        with pytest.raises(RecipeError) as error:
            recipe.structure({**table, **change}, parts()[name], f"[[evaluate]] probes.{name}")
        assert message in str(error.value) and "\n" not in str(error.value)


def hard(rank: int = 0, world: int = 1) -> dict[str, float]:
    data = Colored({"train": 31, "val": 41}, noise=1.0, rank=rank, world=world)
    return {**score(Knn, data, baselines=["pixels"]), **score(Linear, data, steps=20)}


def one_of_two(rank: int) -> dict[str, float]:
    return hard(rank, 2)


def test_two_ranks_agree_with_each_other_and_with_one(two_ranks: Any) -> None:
    first, second = two_ranks(one_of_two)
    alone = hard()
    assert first == second == pytest.approx(alone)
    assert 34 < alone["knn/top1"] < 100 and 34 < alone["linear/top1"] < 100


def test_ids_that_lie_far_apart_are_numbered() -> None:
    ids = torch.tensor([5, 99_999_999_999])
    for kind in (Knn, Linear):
        classify = probe(kind).learn(Cells(torch.eye(2), ids, torch.arange(2)), int(ids.max()) + 1)
        assert torch.equal(classify(torch.eye(2)), ids)
    with pytest.raises(ValueError, match="class 5 among ids below 5"):
        probe(Knn).learn(Cells(torch.eye(1), ids[:1], torch.arange(1)), 5)
