"""A plugin as it was written for twinview 0.1.0 assembles, trains, resumes and scores: hooks gain arguments, values gain fields, and it does not notice.

Its source below is frozen.  Where a change breaks this test, the change breaks plugins: find another way (docs/hooks.md, Promises).
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import twinview
from twinview.errors import RecipeError

YESTERDAY = '''
import numpy as np
import torch
from torch import nn
from twinview import hookimpl, part
from twinview.errors import RecipeError
from twinview.ops import cosine_loss, mlp
from twinview.values import Alignment, EncoderSpec, Features, Geometry, Head, Level, ParamRule, Traits


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.spec = EncoderSpec(pooled=width, cells=Level(width, 8))

    def forward(self, images, hidden=None):
        cells = self.patch(images)
        if hidden is not None:
            cells = cells * ~hidden.view(-1, 1, *cells.shape[-2:])
        return Features(cells, cells.mean((2, 3)))


@part
class Views:
    size: int = 32

    @hookimpl
    def sample_views(self, size, rng):
        corner = rng.random((2, 2)).astype(np.float32) * 0.4
        boxes = torch.from_numpy(np.concatenate([corner, corner + 0.6], 1))
        sizes = ((self.size, self.size),) * 2
        return Geometry(boxes, torch.from_numpy(rng.random(2) < 0.5), torch.tensor(size), sizes, ((0, 1), (1, 0)), {"corner": torch.tensor(corner[0, 0])})


@part
class Photometry:
    @hookimpl
    def draw_augment(self, view, size, rng):
        return {"shift": torch.tensor(int(rng.integers(-20, 20)))}

    @hookimpl
    def apply_augment(self, pixels, params):
        return (pixels.int() + params["shift"].view(-1, 1, 1, 1)).clamp(0, 255).byte()


@part
class Masks:
    hide: int = 3

    @hookimpl
    def heads(self, dims):
        if self.hide >= dims.grids[0][0] * dims.grids[0][1]:
            raise RecipeError("[masks] yesterday.masks: hides everything. Write hide = 3.")

    @hookimpl
    def make_masks(self, geometry, grids, rng):
        return (torch.from_numpy(rng.permutation(grids[0][0] * grids[0][1]) < self.hide), None)


@part
class Encoder:
    width: int = 8

    @hookimpl
    def traits(self):
        return Traits(frozenset(), frozenset({"cells", "pooled", "hides"}))

    @hookimpl
    def make_encoder(self, masked, channels):
        return Net(self.width)

    @hookimpl
    def encode(self, branch, images, hidden, view, role):
        return branch.encoder(images, hidden if role == "online" else None)


@part
class Align:
    @hookimpl
    def align(self, step, online, target):
        return Alignment(lambda m: m, lambda m: m, torch.ones(len(step.batch.keys), 4, 4))


class Store(nn.Module):
    def __init__(self, samples):
        super().__init__()
        self.register_buffer("seen", torch.zeros(samples))
        self.register_buffer("epochs", torch.zeros(()))


@part
class Loss:
    align: str = ""
    width: int = 8

    @hookimpl
    def traits(self):
        return Traits(needs=frozenset({"pooled", "cells", "alignment"}))

    @hookimpl
    def aligned_widths(self, dims):
        return (dims.width("cells"),)

    @hookimpl
    def heads(self, dims):
        return {
            "projector": Head(mlp(dims.width("pooled"), 16, self.width)),
            "predictor": Head(mlp(self.width, 16, self.width), "online_only", ParamRule(2.0, 0.0, "constant")),
            "store": Head(Store(dims.dataset_size), "state"),
        }

    @hookimpl
    def loss(self, step):
        projector, predictor = step.head(self, "projector"), step.head(self, "predictor")
        terms = [
            cosine_loss(step.apply([projector, predictor], i, "online", on="pooled"), step.apply(projector, j, "target", on="pooled"))
            for i, j in step.pairs
        ]
        found = step.alignment(0, 1, self.align)
        gap = (found.online(step.online[0].at("cells")) - found.target(step.target[1].at("cells"))).square().mean(1)
        step.note("share", torch.tensor(step.progress.share))
        return {"image": sum(terms) / len(terms), "cells": (gap * found.weight).sum() / found.weight.sum()}

    @hookimpl
    def param_groups(self, name, parameter):
        return ParamRule(lr_scale=0.5) if name == "encoder.patch.bias" else None

    @hookimpl
    def before_epoch(self, branches, data, progress):
        assert next(iter(data.plain(size=(32, 32), batch_size=4))).images.shape == (4, 3, 32, 32)
        assert next(iter(data.views(progress.epoch))).epoch == progress.epoch
        branches.online.of(self, "store").epochs += 1

    @hookimpl
    def after_step(self, branches, step, progress):
        branches.online.of(self, "store").seen[step.batch.ids] += 1

    @hookimpl
    def evaluate(self, branches, data, progress):
        images = next(iter(data.plain(size=(32, 32)))).images
        return {"norm": float(branches.online.encoder(images).pooled.norm())}


@part
class Double:
    @hookimpl(wrapper=True)
    def loss(self, step):
        answers = yield
        return [{name: 2 * value for name, value in terms.items()} for terms in answers]


@hookimpl
def parts():
    return {"views": Views, "photometry": Photometry, "masks": Masks, "encoder": Encoder, "align": Align, "loss": Loss, "double": Double}
'''


@pytest.fixture
def table(install: Callable[..., None], photo_shards: str) -> dict[str, Any]:
    install("yesterday", YESTERDAY)
    slots = {slot: {"use": f"yesterday.{part}"} for slot, part in
             (("views", "views"), ("augment", "photometry"), ("masks", "masks"), ("encoder", "encoder"), ("align", "align"))}
    return {
        **slots, "loss": [{"use": "yesterday.loss"}], "extra": [{"use": "yesterday.double"}], "data": {"shards": photo_shards, "workers": 0},
        "optimizer": {"use": "adamw", "lr": 0.01}, "run": {"steps": 6, "batch_size": 4, "log_every": 1, "checkpoint_every": 1, "keep": 9, "device": "cpu"},
    }


def test_yesterdays_plugin_trains_and_resumes(table: dict[str, Any], tmp_path: Path) -> None:
    result = twinview.train(table, run=tmp_path / "run")
    assert result.scores["norm"] > 0 and (tmp_path / "run/metrics.jsonl").is_file()
    weights = torch.load(tmp_path / "run/checkpoints/step-000006/model.pt", weights_only=True)
    assert float(weights["state.yesterday/loss/store.epochs"]) == 2 and weights["state.yesterday/loss/store.seen"].tolist() == [2.0] * 12
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"loss/image", "loss/cells", "share", "views/corner"} <= rows[-1].keys()
    assert all(row["loss"] == pytest.approx(row["loss/image"] + row["loss/cells"]) for row in rows)
    for step in (5, 6):
        shutil.rmtree(tmp_path / f"run/checkpoints/step-{step:06d}")
    (tmp_path / "run/checkpoints/latest").write_text("step-000004")
    assert twinview.train(table, run=tmp_path / "run", resume=True).loss == result.loss


def test_what_it_refuses_in_heads_is_refused_by_check_too(table: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"^\[masks\] yesterday\.masks: hides everything\. Write hide = 3\.$"):
        twinview.check({**table, "masks": {"use": "yesterday.masks", "hide": 16}})
    with pytest.raises(RecipeError, match=r"views_together: \[encoder\] yesterday\.encoder answers encode for one `view`, and does not take `views`"):
        twinview.check({**table, "run": {**table["run"], "views_together": True}})
