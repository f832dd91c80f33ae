"""What training would refuse before its first step, `twinview check` and `plan` refuse too, in the same words, without data or memory."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

import twinview
from twinview.assembly import assemble
from twinview.cli import main
from twinview.engine.setup import build
from twinview.errors import DataError, PluginError, RecipeError, TwinviewError
from twinview.planning.plan import plan
from twinview.planning.sizes import check_sizes
from twinview.recipe import from_table

Table = dict[str, Any]
VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "width": 24, "depth": 1, "heads": 2, "patch": 8, "img_size": 32}
CROPS = {"use": "byol.crops", "size": 32}
KNN = {"use": "probes.knn", "size": [32, 32], "train": "scenes:train", "val": "scenes:val"}
CASES: dict[str, tuple[Table, str]] = {
    "a mask on a view in no pair": (
        {"views": {"use": "siameseim.crops", "size": 32}, "encoder": VIT, "masks": {"use": "masks.random", "views": [1]}, "loss": [{"use": "toy.pooled"}]},
        "[masks] masks.random: views names view 1, which is online in no pair of these views. Write views = [0].",
    ),
    "a mask on a view that there is not": (
        {"views": CROPS, "encoder": VIT, "masks": {"use": "siameseim.blocks", "views": [0, 2]}, "loss": [{"use": "toy.pooled"}]},
        "[masks] siameseim.blocks: views names view 2; views are counted from 0, and there are 2.",
    ),
    "more clusters than cells": (
        {"views": CROPS, "align": {"use": "multisiam.roi"}, "loss": [{"use": "multisiam.clusters", "clusters": 17}]},
        "[[loss]] multisiam.clusters: clusters = 17, and the views have 4 x 4 cells. Raise views.size, or choose encoder cells of a smaller stride.",
    ),
    "img_size on a ResNet": (
        {"views": CROPS, "encoder": {"use": "timm.encoder", "name": "test_resnet", "img_size": 64}, "loss": [{"use": "byol.image"}]},
        "img_size",
    ),
    "keep_best that no evaluation gives": (
        {"run": {"steps": 4, "batch_size": 4, "keep_best": "knn/top5", "device": "cpu"}, "evaluate": [{**KNN, "baselines": ["pixels"]}]},
        "[run] keep_best: no evaluation gives 'knn/top5'. Did you mean 'knn/top1'? There is: knn/pixels/top1, knn/top1.",
    ),
    "evaluation shards that are not there": ({"evaluate": [{**KNN, "val": "nowhere/val.tar"}]}, "nowhere/val.tar: there is no such shard. There is no"),
    "held-out images that nothing holds out": ({"evaluate": [{**KNN, "val": "held-out"}]}, "held-out is what [data] held_out keeps, and it is 0."),
    "one view for a loss of pairs": ({"views": {**CROPS, "views": 1}, "loss": [{"use": "byol.image"}]},
                                     "[[loss]] byol.image: needs pairs of views, and [views] byol.crops gives none. Write more views."),
    "blocks that are not there": (
        {"run": {"steps": 4, "batch_size": 4, "activation_checkpointing": True, "device": "cpu"}, "encoder": {"use": "blockless.encoder"}},
        "[run] activation_checkpointing: [encoder] blockless.encoder names no blocks of this network. Leave it out, or choose another network.",
    ),
}


@pytest.fixture
def table(toy: Table, install: Callable[..., None], photo_shards: str) -> Table:
    install("blockless", BLOCKLESS)
    return {**toy, "data": {"shards": photo_shards, "workers": 0}, "run": {**toy["run"], "device": "cpu"}}


BLOCKLESS = '''
from twinview.hooks import hookimpl, part
from twinview.values import Traits
import twinview_toy as toy


@part
class Encoder(toy.Encoder):
    @hookimpl
    def traits(self):
        return Traits(gives=frozenset({"cells", "pooled", "recomputable"}))

    @hookimpl
    def make_encoder(self):
        return toy.Net(self.width)


@hookimpl
def parts():
    return {"encoder": Encoder}
'''


def refusal(ask: Callable[[], Any]) -> str:
    with pytest.raises(TwinviewError) as found:
        ask()
    return str(found.value)


@pytest.mark.parametrize("case", CASES)
def test_check_plan_and_training_refuse_in_the_same_words(table: Table, case: str) -> None:
    change, said = CASES[case]
    made = {**table, **change}
    found = refusal(lambda: twinview.check(made))
    assert said in found and "\n" not in found
    assert refusal(lambda: plan(from_table(made), memory=1)) == found
    assert refusal(lambda: build(from_table(made))) == found


def test_check_and_plan_say_what_the_run_never_comes_to(toy: Table, caplog: pytest.LogCaptureFixture) -> None:
    made = {**toy, "schedule": {"warmup_steps": 100}}
    for ask in (lambda: twinview.check(made), lambda: plan(from_table(made), memory=1)):
        caplog.clear()
        ask()
        assert [line for line in caplog.messages if line.startswith("[schedule] warmup_steps = 100: the run has 4 steps")] == caplog.messages != []


def test_check_makes_a_large_model_of_no_memory(toy: Table) -> None:
    table = {**toy, "encoder": {"use": "timm.encoder", "name": "vit_huge_patch14_224"}, "loss": [{"use": "byol.image"}], "views": {"use": "byol.crops"}}
    with torch.device("cpu"):
        assert "Assembly(views=byol.crops, encoder=timm.encoder, loss=byol.image" in repr(twinview.check(table))


NO_META = '''
import torch
from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
import twinview_toy as toy


@part
class Encoder(toy.Encoder):
    @hookimpl
    def make_encoder(self):
        made = toy.Net(self.width)
        made.scale = float(made.patch.weight.norm())  # of a tensor without memory there is no number
        return made


@part
class Sizes:
    most: int = 3

    @hookimpl
    def check(self, dims):
        if self.most < dims.grids[0][0]:
            raise RecipeError(f"[[extra]] nometa.sizes: {dims.grids[0][0]} rows of {dims.dataset_size} images. Write most = {dims.grids[0][0]}.")


@hookimpl
def parts():
    return {"encoder": Encoder, "sizes": Sizes}
'''


def test_an_encoder_that_needs_numbers_is_made_on_the_cpu_and_a_part_refuses_by_size(table: Table, install: Callable[..., None]) -> None:
    install("nometa", NO_META)
    made = {**table, "encoder": {"use": "nometa.encoder"}}
    check_sizes(assemble(from_table(made)))
    with pytest.raises(RecipeError, match=r"^\[\[extra\]\] nometa\.sizes: 4 rows of 0 images\. Write most = 4\.$"):
        twinview.check({**made, "extra": [{"use": "nometa.sizes"}]})
    with pytest.raises(RecipeError, match=r"4 rows of 12 images"):
        build(from_table({**made, "extra": [{"use": "nometa.sizes"}]}))


def test_the_command_prints_the_recipe_and_then_refuses(table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    (tmp_path / "mine.toml").write_text(tomli_w.dumps({**table, "evaluate": [{**KNN, "val": "nowhere.tar"}]}))
    assert main(["check", str(tmp_path / "mine.toml")]) == 2
    said = capsys.readouterr()
    assert "who answers:" in said.out and said.err.count("\n") == 1 and "nowhere.tar: there is no such shard." in said.err


def test_before_a_run_there_is_no_data_to_read(table: Table, install: Callable[..., None]) -> None:
    install("early", NO_META.replace("def check(self, dims):", "def check(self, data):").replace("if self.most", "next(data.plain(size=(8, 8)))\n        if self.most"))
    with pytest.raises(PluginError, match=r"data\.plain is not there yet: before a run begins there is data\.require\(shards\) alone\.$"):
        twinview.check({**table, "extra": [{"use": "early.sizes"}]})


@pytest.mark.parametrize("value", ["torch.zeros(3)", "nn.Linear(2, 2)", "torch.float32", "np.zeros(2)", "{1: 2}"])
def test_options_that_no_recipe_could_hold_are_refused(toy: Table, install: Callable[..., None], value: str) -> None:
    code = f"import attrs, numpy as np, torch\nfrom torch import nn\nfrom twinview.hooks import hookimpl, part\n\n\n@part\nclass P:\n    queue: dict = attrs.field(factory=lambda: {value})\n"
    install("kept", code + "\n    @hookimpl\n    def after_step(self, step):\n        pass\n\n\n@hookimpl\ndef parts():\n    return {'p': P}\n")
    with pytest.raises(PluginError, match=r"^\[\[extra\]\] kept\.p: its option 'queue' is a .*\. Options are numbers, words, .* Head\(module, \"state\"\)\.$"):
        assemble(from_table({**toy, "extra": [{"use": "kept.p"}]}))


def test_what_training_needs_of_the_data_is_still_refused_there(table: Table) -> None:
    with pytest.raises(DataError):
        build(from_table({**table, "data": {"shards": "nowhere.tar"}}))
    assert json.dumps(twinview.check({**table, "data": {"shards": "nowhere.tar"}}).table())


@pytest.mark.parametrize("source", ["nowhere/run", "nowhere.pth", "run/without/checkpoint"])
def test_weights_that_are_not_there_are_told_by_check_and_not_read(
    source: str, table: Table, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe may be checked, as it may be planned, before the run that it starts from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "without" / "checkpoint").mkdir(parents=True)
    made = {**table, "encoder": {"use": "torchvision.resnet", "weights": source}}
    said = f"[encoder] weights = {source!r}: there is no such file. Write a run's folder, or a file that ends in .pt"
    twinview.check(made)
    assert [said in line and line.endswith(" Training refuses it.") for line in caplog.messages] == [True]
    if source == "nowhere/run":
        plan(from_table(made), memory=8.0)
    (tmp_path / "there.pth").write_bytes(b"no weights, and nobody reads them")
    (tmp_path / "run" / "checkpoints" / "step-000004").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-000004")
    (tmp_path / "run" / "checkpoints" / "step-000004" / "model.pt").touch()
    caplog.clear()
    for there in ("there.pth", "run", "run/checkpoints/step-000004", "IMAGENET1K_V1", "timm:resnet18.a1_in1k"):
        twinview.check({**made, "encoder": {**made["encoder"], "weights": there}})
    assert not caplog.messages
