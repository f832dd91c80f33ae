"""Runs of DeepCluster and of Modified Deep Clustering: classifiers drawn anew, samples chosen by cluster, kills, workers, refusals."""
from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from twinview import train
from twinview.errors import TwinviewError
from twinview.ops.whiten import whitened
from twinview_deepcluster.alexnet import Network


def recipe(shards: str, **changes: Any) -> dict[str, Any]:
    return copy.deepcopy({
        "views": {"use": "byol.crops", "views": 1, "size": 32},
        "encoder": {"use": "deepcluster.alexnet", "width": 0.05},
        "loss": [{"use": "deepcluster.images", "clusters": 3, "components": 4, "iterations": 5, "on": "cells", "hidden": [8, 8], "size": [32, 32]}],
        "target": {"momentum": 0.0},
        "data": {"shards": shards, "workers": 0},
        "optimizer": {"use": "sgd", "lr": 0.05},
        "run": {"steps": 8, "batch_size": 4, "device": "cpu", "log_every": 1, "checkpoint_every": 4, "keep": 3},
        **changes,
    })


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_dropout_goes_on_bit_for_bit(tmp_path: Path, photo_shards: str) -> None:
    train(recipe(photo_shards), run=tmp_path / "run")  # three steps an epoch: step 4 lies in the second
    expected = losses(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000008")
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-000004\n")
    train(recipe(photo_shards), "data.workers=2", run=tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == expected


def test_refusals(tmp_path: Path, photo_shards: str) -> None:
    for change, words in (({"clusters": 13}, "13 clusters of 12 images. Write fewer"), ({"size": [64, 64]}, r"Write size = \[32, 32\]")):
        table = recipe(photo_shards)
        table["loss"][0] |= change
        with pytest.raises(TwinviewError, match=words):
            train(table, run=tmp_path / "run")


def test_alexnet_gives_the_grid_that_it_promises() -> None:
    network = Network(2, 0.05, True).eval()
    for size in ((224, 224), (65, 100)):
        found = network(torch.randn(1, 3, *size))
        assert found.cells.shape[2:] == network.spec.grid(size) and found.pooled.shape == (1, network.spec.pooled)


def test_fewer_rows_than_components_stay_finite() -> None:
    torch.manual_seed(0)
    found = whitened(torch.randn(4, 10), 8)
    assert torch.isfinite(found).all() and torch.allclose(found.norm(dim=1), torch.ones(4), atol=1e-5)
