"""Signals without labels: known cases, and the same numbers from a definition written out."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinview.branch import Branch, Branches
from twinview.errors import DataError, RecipeError
from twinview.values import Batch, DataFactory, Dims, EncoderSpec, Features, Level, PlainBatch, Size
from twinview_signals import measures, parts


def test_rank_of_known_spectra() -> None:
    one = torch.outer(torch.arange(1.0, 40), torch.ones(8))
    assert measures.rankme(one) == pytest.approx(1, abs=1e-4)
    even = torch.eye(8).repeat(20, 1)
    assert measures.rankme(even) == pytest.approx(8, rel=1e-5)


def test_lidar_counts_what_tells_images_apart() -> None:
    draws = torch.Generator().manual_seed(0)
    places = torch.zeros(400, 1, 16)
    places[..., :4] = torch.randn(400, 1, 4, generator=draws)
    views = places + 0.05 * torch.randn(400, 6, 16, generator=draws)
    assert 3.8 < measures.lidar(views) < 4.3  # 4 directions tell images apart
    between = torch.randn(400, 1, 16, generator=draws) + torch.randn(400, 6, 16, generator=draws)
    assert measures.lidar(between) > 14


def test_alpha_is_the_slope_that_was_put_in() -> None:
    q, _ = torch.linalg.qr(torch.randn(300, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    q = torch.linalg.qr(q - q.mean(0))[0]
    for alpha in (0.5, 1.0, 1.7):
        x = q * torch.arange(1, 61, dtype=torch.float64) ** (-alpha / 2)
        assert measures.alpha_req(x, 5, 50) == pytest.approx(alpha, abs=0.02)


def test_alignment_and_uniformity_by_their_definitions() -> None:
    x = torch.randn(30, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = x / x.norm(dim=2, keepdim=True)
    pairs = [(i, j) for i in range(3) for j in range(i)]
    assert measures.alignment(x) == pytest.approx(float(torch.stack([(unit[:, i] - unit[:, j]).square().sum(1).mean() for i, j in pairs]).mean()))
    gaps = [math.exp(-2 * float((unit[i, 0] - unit[j, 0]).square().sum())) for i in range(30) for j in range(30) if i != j]
    assert measures.uniformity(x[:, 0]) == pytest.approx(math.log(sum(gaps) / len(gaps)))
    assert measures.occupancy(torch.tensor([5, 5, 5, 5])) == pytest.approx((1, 0)) and measures.occupancy(torch.tensor([9, 0, 0, 0])) == (0, 0.75)


class Net(nn.Module):
    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0 if blind else 1.0))
        self.spec = EncoderSpec(pooled=12, cells=Level(3, 16), levels={})

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        cells = nn.functional.adaptive_avg_pool2d(images, (2, 2))
        return Features(cells=cells, pooled=cells.flatten(1) * self.scale)


class Noise(DataFactory):
    channels = 3

    def plain(self, shards: Any = None, *, size: Size, labels: Sequence[str] = (), batch_size: int = 64, crop: Any = False, interpolation: Any = "bilinear") -> Iterator[PlainBatch]:
        assert labels == ()
        for at in range(0, 200, batch_size):
            ids = torch.arange(at, min(at + batch_size, 200))
            images = torch.stack([torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(int(i))) for i in ids])
            yield PlainBatch(tuple(map(str, ids.tolist())), ids, nn.functional.interpolate(images, size, mode="bilinear"), {})

    def views(self, epoch: int) -> Iterator[Batch]:
        raise AssertionError

    def class_names(self, shards: Any = None) -> tuple[str, ...]:
        return ()

    def require(self, shards: Any) -> None:
        return


@pytest.mark.parametrize("name", ["rankme", "lidar", "alphareq", "uniformity", "occupancy"])
def test_every_signal_gives_what_its_traits_say(name: str) -> None:
    options: dict[str, Any] = {"occupancy": {"clusters": 5}, "lidar": {"crops": 3}, "alphareq": {"first": 1, "last": 9}}.get(name, {})
    part: Any = parts()[name](size=(16, 16), images=90, baselines=["random"], **options)
    online = Branch(Net(), {}, {}, {})
    scores = part.evaluate(Branches(online, online, lambda: Net(blind=True)), Noise())
    assert scores.keys() == part.traits().scores and scores == part.evaluate(Branches(online, online, lambda: Net(blind=True)), Noise())
    if name in ("rankme", "lidar"):
        assert scores[f"{name}/value"] > 5 > scores[f"{name}/random/value"]
    dims = Dims(encoder=online.encoder.spec, grids=(), sizes=(), pairs=(), global_batch=1, dataset_size=1)  # type: ignore[arg-type]
    part.check(dims, Noise())
    with pytest.raises(RecipeError, match="the encoder gives no 'c9'"):
        parts()[name](size=(16, 16), on="c9").check(dims, Noise())


def test_more_clusters_than_images() -> None:
    online = Branch(Net(), {}, {}, {})
    part: Any = parts()["occupancy"](size=(16, 16), clusters=201, images=0)
    with pytest.raises(DataError, match="clusters = 201 for 200 images. Write fewer clusters"):
        part.evaluate(Branches(online, online, Net), Noise())
