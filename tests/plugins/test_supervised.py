"""The ceiling and the floor: training with labels learns them, and training nothing moves nothing."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from twinview import train
from twinview.errors import TwinviewError
from twinview_supervised import Classes


def recipe(shards: str, loss: str) -> dict[str, Any]:
    return {
        "views": {"use": "byol.crops", "views": 1, "size": 32, "scale": [0.8, 1.0]},
        "encoder": {"use": "torchvision.resnet", "stem": "small"},
        "loss": [{"use": f"supervised.{loss}"}],
        "target": {"momentum": 0.0},
        "data": {"shards": shards, "workers": 0},
        "optimizer": {"use": "sgd", "lr": 0.05},
        "run": {"steps": 8, "batch_size": 6, "device": "cpu", "log_every": 1},
    }


def test_labels_are_learned(tmp_path: Path, class_shards: str) -> None:
    train(recipe(class_shards, "classes"), run=tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert min(row["loss"] for row in rows[-4:]) < rows[0]["loss"] and max(row["classes/accuracy"] for row in rows[-4:]) > 0.6


def test_nothing_moves_without_a_loss(tmp_path: Path, class_shards: str) -> None:
    few = train(recipe(class_shards, "nothing"), "run.steps=1", run=tmp_path / "few")
    many = train(recipe(class_shards, "nothing"), "run.steps=4", run=tmp_path / "many")
    one, other = (torch.load(r.checkpoint / "model.pt", weights_only=True) for r in (few, many))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_shards_without_labels_are_refused(tmp_path: Path, photo_shards: str) -> None:
    with pytest.raises(TwinviewError, match=r"supervised.classes: needs labels"):
        train(recipe(photo_shards, "classes"), run=tmp_path / "run")


def test_the_loss_is_the_mean_over_views() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 3), torch.tensor([0, 1, 2, 1])

    class Step:
        batch: Any = type("Batch", (), {"labels": {"class": labels}, "images": (0, 1)})

        def __init__(self) -> None:
            self.noted: dict[str, Any] = {}

        def head(self, part: object, name: str) -> str:
            return name

        def apply(self, head: str, view: int, role: str, on: str) -> torch.Tensor:
            return logits[view]

        def note(self, name: str, value: torch.Tensor) -> None:
            self.noted[name] = value

    step: Any = Step()
    found = Classes(smoothing=0.1).loss(step)["classes"]
    assert torch.allclose(found, (F.cross_entropy(logits[0], labels, label_smoothing=0.1) + F.cross_entropy(logits[1], labels, label_smoothing=0.1)) / 2)
    assert torch.equal(step.noted["classes/accuracy"].bool(), logits.argmax(2) == labels)
