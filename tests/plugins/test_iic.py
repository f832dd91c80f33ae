"""IIC's views, network, heads and loss, and runs of it."""
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinview import train
from twinview.errors import TwinviewError
from twinview_iic.information import MutualInformation, information
from twinview_iic.network import Network
from twinview_iic.views import Pair


def recipe(shards: str, **changes: Any) -> dict[str, Any]:
    return copy.deepcopy({
        "views": {"use": "iic.pair", "size": 32, "zoom": 0.6},
        "encoder": {"use": "iic.segmentation_net", "stem": [8], "body": [8], "dilated": [8]},
        "align": {"use": "densesiam.grid_sample", "points": "online"},
        "loss": [
            {"use": "iic.mutual_information", "name": "over", "clusters": 6, "displacement": 1, "period": 2},
            {"use": "iic.mutual_information", "clusters": 3, "sub_heads": 2, "displacement": 1, "period": 2, "turn": 1},
        ],
        "target": {"momentum": 0.0},
        "data": {"shards": shards, "workers": 0, "mean": [0.0] * 3, "std": [1.0] * 3},
        "optimizer": {"use": "adamw", "lr": 1e-3},
        "run": {"steps": 6, "batch_size": 4, "device": "cpu", "log_every": 1, "checkpoint_every": 3},
        **changes,
    })


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_both_views_are_one_square_and_the_second_is_mirrored_half_of_the_time() -> None:
    rng, flips = np.random.default_rng(0), []
    for size in ((300, 400), (100, 90)):
        for _ in range(100):
            g = Pair(size=48, zoom=0.33).sample_views(size, rng)
            assert torch.equal(g.boxes[0], g.boxes[1]) and not g.flips[0] and g.pairs == ((0, 1),)
            x0, y0, x1, y1 = (g.boxes[0] * torch.tensor([size[1], size[0]] * 2)).tolist()
            side = min(145, *size)
            assert x1 - x0 == pytest.approx(side, abs=1e-3) and y1 - y0 == pytest.approx(side, abs=1e-3)
            assert min(x0, y0) >= 0 and max(g.boxes[0].tolist()) <= 1 + 1e-6
            flips.append(bool(g.flips[1]))
    assert 0.4 < np.mean(flips) < 0.6


@pytest.mark.parametrize(("given", "width"), [("colors_and_edges", 5), ("edges", 2), ("colors", 3)])
def test_the_network_sees_colors_and_edges(given: Any, width: int) -> None:
    network = Network(3, given, [4, 6], [8], [10])
    assert network.seen(torch.rand(2, 3, 9, 14)).shape[1] == width == network.get_parameter("layers.0.weight").shape[1]
    found = network(torch.rand(2, 3, 9, 14))
    assert found.cells.shape == (2, 10, *network.spec.grid((9, 14))) and found.pooled.shape == (2, 10)


def test_what_is_hidden_is_not_seen() -> None:
    network = Network(3, "colors_and_edges", [4], [8], [8]).eval()
    hidden = torch.zeros(1, 25, dtype=torch.bool)
    hidden[0, 7] = True
    images = torch.rand(1, 3, 10, 10)
    other = images.clone()
    other[:, :, 2:4, 4:6] = 5
    assert torch.equal(network(images, hidden).cells, network(other, hidden).cells) and not network(images, hidden).cells[0, :, 1, 2].any()


def test_equal_clusters_of_equal_size_say_ln_k_of_one_another_and_independent_ones_nothing() -> None:
    labels = torch.arange(16)[:, None, None].expand(16, 8, 8)  # the same everywhere in an image: displacements change nothing
    x, y = (torch.nn.functional.one_hot(n, 4).movedim(3, 1).float() for n in (labels % 4, labels // 4))
    same = information(x, x, 2, 1.0)
    assert float(same.nats) == pytest.approx(np.log(4), rel=1e-5) and float(same.loss) == pytest.approx(-np.log(4), rel=1e-5)
    assert float(same.entropy) == pytest.approx(1, abs=1e-6)
    assert abs(float(information(x, y, 2, 1.0).nats)) < 1e-5
    one = information(torch.ones(2, 1, 4, 4).repeat(1, 2, 1, 1) * torch.tensor([1.0, 0.0])[:, None, None], x[:2, :2, :4, :4] * 0 + 0.5, 1, 1.0)
    assert torch.isfinite(one.loss)


def test_places_where_the_views_do_not_meet_count_nothing() -> None:
    torch.manual_seed(0)
    x1, x2 = torch.rand(2, 3, 6, 6).softmax(1), torch.rand(2, 3, 6, 6).softmax(1)
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :4, :4] = 1
    assert torch.allclose(information(x1 * mask, x2 * mask, 1, 1.0).loss, information(x1[..., :4, :4], x2[..., :4, :4], 1, 1.0).loss, atol=1e-6)


def test_a_turn_that_the_round_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="period = 2 has no turn 2"):
        MutualInformation(period=2, turn=2)


def test_heads_take_turns(tmp_path: Path, photo_shards: str) -> None:
    train(recipe(photo_shards), run=tmp_path / "whole")
    for row in rows(tmp_path / "whole"):  # three steps an epoch
        idle, busy = ("mutual_information", "over.mutual_information")[:: 1 if row["epoch"] % 2 == 0 else -1]
        assert row[f"loss/{idle}"] == 0 and row[f"loss/{busy}"] != 0


def test_a_head_can_be_shared_with_the_evaluation_and_a_learned_alignment_used(tmp_path: Path, photo_shards: str) -> None:
    table = recipe(photo_shards, head=[{"use": "iic.clusters", "name": "clusters", "clusters": 4}])
    table["loss"] = [{"use": "iic.mutual_information", "head": "clusters", "displacement": 1}]
    table["align"] = {"use": "siameseim.relative", "depth": 1, "attention_heads": 2}
    assert np.isfinite(train(table, "run.steps=2", run=tmp_path / "run").loss)
    table["loss"][0]["sub_heads"] = 2
    with pytest.raises(TwinviewError, match="sub_heads are of its own head"):
        train(table, run=tmp_path / "refused")
