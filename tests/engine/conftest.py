"""A network small enough to train hundreds of steps in a test: BatchNorm (state of each rank) and dropout (random state) are in it."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TINY = '''
import torch
from torch import nn
from twinview.hooks import hookimpl, part
from twinview.values import EncoderSpec, Features, Level, ParamRule, Traits


class Net(nn.Module):
    """8 x 8 pixel patches, BatchNorm, dropout, and a row of means."""

    def __init__(self, width, dropout):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(width, width, 1))
        self.spec = EncoderSpec(pooled=width, cells=Level(width, 8))

    def forward(self, images, hidden=None):
        cells = self.body(images)
        return Features(cells=cells, pooled=cells.mean((2, 3)))


@part
class Encoder:
    width: int = 8
    dropout: float = 0.1

    @hookimpl
    def traits(self):
        return Traits(gives=frozenset({"cells", "pooled"}))

    @hookimpl
    def make_encoder(self):
        return Net(self.width, self.dropout)


@part
class Rules:
    """SimSiam's predictor: a constant rate and no decay; the stem stays as it is."""

    @hookimpl
    def param_groups(self, name, parameter):
        if "predictor" in name:
            return ParamRule(lr_scale=2.0, weight_decay=0.0, schedule="constant")
        return ParamRule(frozen=True) if "body.0" in name else None


@part
class Breaks:
    """A loss that is not finite from a step on."""

    at: int = 2

    @hookimpl
    def loss(self, step):
        value = step.online[0].pooled.square().mean()
        return {"breaks": value * (float("nan") if step.progress.step + 1 >= self.at else 1.0)}


@part
class Watch:
    """Writes down which hooks ran, and scores by drawing random numbers, which must not move the training."""

    path: str

    def say(self, text):
        with open(self.path, "a") as file:
            file.write(text + "\\n")

    @hookimpl
    def before_epoch(self, branches, data, progress):
        self.say(f"epoch {progress.epoch} before step {progress.step}")

    @hookimpl
    def after_step(self, step, progress):
        assert not step.online[0].pooled.requires_grad
        self.say(f"after step {progress.step}")

    @hookimpl
    def evaluate(self, branches, data, progress):
        assert not branches.online.training and not torch.is_grad_enabled()
        images = sum(len(branches.online.encoder(batch.images).pooled) for batch in data.plain(size=(24, 24)))
        self.say(f"evaluate at {progress.step} on {images}")
        return {"noise": torch.rand(()).item()}


@part
class Peak:
    """A score that is highest after a step."""

    at: int = 6

    @hookimpl
    def evaluate(self, progress):
        return {"peak": -abs(progress.step - self.at)}


@hookimpl
def parts():
    return {"encoder": Encoder, "rules": Rules, "breaks": Breaks, "watch": Watch, "peak": Peak}
'''


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 small pictures in two shards."""
    from twinview.data.prepare.pack import pack_images

    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(20):
        noise = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        noise.resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.jpg")
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack_images(folder, out, shard_size=10)
    return out


@pytest.fixture
def tiny(toy: dict[str, Any], install: Callable[..., None], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe of the tiny network: 5 steps an epoch, 12 steps.  Subprocesses find its methods too."""
    install("smallnet", TINY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    return {
        **toy,
        "encoder": {"use": "smallnet.encoder"},
        "data": {"shards": str(images), "workers": 0},
        "optimizer": {"use": "adamw", "lr": 0.01, "weight_decay": 0.1},
        "schedule": {"warmup_steps": 2},
        "run": {"steps": 12, "batch_size": 4, "log_every": 1, "checkpoint_every": 4, "device": "cpu"},
    }
