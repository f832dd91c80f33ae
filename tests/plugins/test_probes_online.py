"""The probe beside a run learns, and the run does not notice: losses are bit for bit the same."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinview.api import train
from twinview.errors import RecipeError


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> str:
    from twinview.data.prepare.pack import pack
    from twinview.data.writing.writer import Options

    root = tmp_path_factory.mktemp("two")
    for n, name in enumerate(("blue", "red")):
        (root / "images" / name).mkdir(parents=True)
        for i in range(16):
            pixels = np.random.default_rng([n, i]).integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[..., 2 - 2 * n] += 100
            Image.fromarray(pixels).save(root / "images" / name / f"{i}.png")
    pack("imagefolder", str(root / "images"), root / "shards", Options())
    return str(root / "shards")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_losses_are_the_same_with_and_without(install: Callable[..., None], labeled: str, tmp_path: Path) -> None:
    install("toy")
    plain: dict[str, Any] = {
        "views": {"use": "toy.views"},
        "encoder": {"use": "torchvision.resnet", "name": "resnet18", "width": 8, "stem": "small"},
        "loss": [{"use": "toy.pooled"}],
        "data": {"shards": labeled, "workers": 0},
        "optimizer": {"use": "sgd", "lr": 0.05},
        "run": {"steps": 12, "batch_size": 8, "log_every": 1, "device": "cpu"},
    }
    beside = {
        **plain,
        "extra": [{"use": "probes.online", "memory": 24, "k": 5, "smoothing": 0.5}, {"use": "probes.online", "name": "late", "branch": "target", "view": 1, "every": 3}],
        "evaluate": [
            {"use": "probes.knn", "val": labeled, "size": [32, 32], "every": 4, "baselines": ["random", "pixels"], "k": 3},
            {"use": "probes.linear", "val": labeled, "size": [32, 32], "every": 5, "solver": "lbfgs"},
            {"use": "signals.lidar", "size": [32, 32], "every": 6, "crops": 2},
        ],
    }
    train(plain, run=tmp_path / "plain")
    train(beside, run=tmp_path / "beside")
    one, two = rows(tmp_path / "plain"), rows(tmp_path / "beside")
    assert [row["loss"] for row in one] == [row["loss"] for row in two] and len(one) == 12
    assert [row["spread/online"] for row in one] == [row["spread/online"] for row in two]
    assert two[-1]["online/top1"] > 70 and two[-1]["online/knn"] > 60 and "late.online/top1" in two[9]
    assert "score/knn/top1" in two[3] and "score/linear/top1" in two[4] and "score/lidar/value" in two[5]


def test_a_view_that_nobody_looks_at(install: Callable[..., None], labeled: str, tmp_path: Path) -> None:
    install("toy")
    table: dict[str, Any] = {
        "views": {"use": "byol.crops", "views": 1, "size": 32},
        "encoder": {"use": "toy.encoder"},
        "loss": [{"use": "supervised.nothing"}],
        "extra": [{"use": "probes.online"}],
        "data": {"shards": labeled, "workers": 0},
        "optimizer": {"use": "sgd", "lr": 0.0},
        "run": {"steps": 2, "batch_size": 4, "device": "cpu"},
    }
    with pytest.raises(RecipeError, match=r"probes.online: no loss looks at view 0 of the online branch\. Write view or branch"):
        train(table, run=tmp_path / "run")
    table["extra"][0]["view"] = 3
    with pytest.raises(RecipeError, match="there is no view 3; views are counted from 0, and there are 1"):
        train(table, run=tmp_path / "other")
