"""The engine with what people train: a ResNet-18, MultiSiam's parts, LARS."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from twinview.analysis.load import load_encoder
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.recipe import from_table


def recipe(images: Path, **run: Any) -> dict[str, Any]:
    return {
        "views": {"use": "multisiam.iou_crops", "size": 32},
        "augment": {"use": "byol.photometry"},
        "encoder": {"use": "torchvision.resnet", "name": "resnet18", "cells": "c4"},
        "align": {"use": "multisiam.roi"},
        "loss": [{"use": "byol.image", "hidden": 64, "channels": 32}, {"use": "multisiam.clusters", "hidden": 64, "channels": 32}],
        "target": {"momentum": 0.9},
        "data": {"shards": str(images), "workers": 0},
        "optimizer": {"use": "lars", "base_lr": 8.0, "weight_decay": 1e-6},
        "run": {"steps": 3, "batch_size": 8, "log_every": 1, "device": "cpu", **run},
    }


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


def test_multisiam_trains_resumes_and_loads(images: Path, tmp_path: Path) -> None:
    table = recipe(images, checkpoint_every=1)

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(from_table(table), tmp_path / "run", on_progress=interrupt)
    before = losses(tmp_path / "run")
    train(from_table(table), tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == before and len(before) == 3
    features = load_encoder(tmp_path / "run")(torch.rand(2, 3, 32, 32))
    assert features.cells.shape == (2, 256, 2, 2) and features.pooled.shape == (2, 512)


def test_autocast_and_channels_last_change_the_rounding_alone(images: Path, tmp_path: Path) -> None:
    train(from_table(recipe(images)), tmp_path / "fp32")
    train(from_table(recipe(images, precision="bf16", channels_last=True)), tmp_path / "bf16")
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), abs=0.05)
    weights = torch.load(tmp_path / "bf16/checkpoints/step-000003/model.pt", weights_only=True)
    assert {v.dtype for v in weights.values()} == {torch.float32, torch.int64}  # parameters, averages and statistics stay fp32
    assert any(not torch.equal(v, weights[k.replace("online", "target", 1)]) for k, v in weights.items() if k.startswith("online.encoder"))
