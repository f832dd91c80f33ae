"""`twinview export`: the file alone, in its own library, gives back the features."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from twinview import api
from twinview.cli import main
from twinview.cli.sizes import size_of
from twinview.errors import TwinviewError

VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 48, "depth": 2, "heads": 3, "positions": "sine_row", "final_norm": False,
       "init": "mae", "layer_scale": 0.1, "drop_path": 0.1, "frozen_patch_embed": True}  # fmt: skip
Train = Callable[..., Path]


@pytest.fixture
def train(toy: dict[str, Any], photo_shards: str, tmp_path: Path) -> Train:
    """A run of two steps of an encoder, the first view masked."""

    def run(encoder: dict[str, Any], **tables: Any) -> Path:
        table = {**toy, "encoder": encoder, "masks": {"use": "toy.masks"}, "data": {"shards": photo_shards, "workers": 0, "mean": [0.4, 0.5, 0.6]}, **tables}
        return api.train({**table, "run": {**toy["run"], "steps": 2, "device": "cpu"}}, run=tmp_path / "run").folder

    return run


@pytest.mark.parametrize("change", [{}, {"positions": "learned", "final_norm": True, "pooled": "token", "hide": "mask_token", "img_size": 32}], ids=str)
def test_a_vision_transformer_loads_into_timm(change: dict[str, Any], train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = train({**VIT, **change}), tmp_path / "new" / "vit.safetensors"
    capsys.readouterr()
    assert main(["export", str(run), str(out), "--size", "40x64"]) == 0
    code = capsys.readouterr().out.partition("\n\n")[2]
    about = json.loads(out.with_suffix(".json").read_text())
    assert (about["library"], about["strict"], about["size"], about["mean"], about["step"]) == ("timm", True, [40, 64], [0.4, 0.5, 0.6], 2)
    assert about["encoder"]["width"] == 48 and about["model"] in code
    assert "twinview" not in code and "deepspeed" not in code
    made: dict[str, Any] = {}
    exec(code, made)
    images = torch.randn(2, 3, 40, 64)
    with torch.no_grad():
        own, theirs = api.load(run)(images), made["model"].eval()
        assert (theirs.forward_features(images) - own.tokens).abs().max() < 1e-5
        assert (theirs(images) - own.pooled).abs().max() < 1e-5


def test_a_resnet_loads_into_torchvision_and_weights_take_the_file(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = train({"use": "torchvision.resnet", "cells": "c3", "fpn": True, "fpn_channels": 8}), tmp_path / "resnet.safetensors"
    assert main(["export", str(run), str(out)]) == 0
    assert capsys.readouterr().out.endswith("import torchvision\nmodel = torchvision.models.resnet18()\nmodel.load_state_dict(tensors, strict=False)\n")
    model = torchvision.models.resnet18(weights=None).eval()
    missing, unexpected = model.load_state_dict(load_file(out), strict=False)
    assert missing == ["fc.weight", "fc.bias"] and not unexpected
    model.fc = torch.nn.Identity()
    images, encoder = torch.randn(2, 3, 64, 64), api.load(run)
    with torch.no_grad():
        assert (model(images) - encoder(images).pooled).abs().max() < 1e-5
    assert main(["export", str(run), str(tmp_path / "own.safetensors"), "--to", "torch"]) == 0
    assert load_file(tmp_path / "own.safetensors").keys() == encoder.state_dict().keys()
    for words, said in (
        (["--size", "64"], "--size: nothing in this file depends on the size of images"),
        (["--to", "timm"], "--to timm: timm has no network that is this encoder, torchvision.resnet. Write --to torchvision or torch."),
        (["--step", "7"], "holds no checkpoint of step 7. There is: 2."),
    ):
        assert main(["export", str(run), str(out), *words]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_option_for_which_no_library_has_the_network_is_named(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train({"use": "torchvision.resnet", "width": 8})
    for out, to, said in (
        ("e.safetensors", "torchvision", "this encoder, torchvision.resnet with width = 8. Write --to torch."),
        ("hub", "huggingface", "this encoder, torchvision.resnet with width = 8. Write --to onnx or safetensors."),
        ("e.pkl", "detectron2", "torchvision.resnet with width = 8 is none that torchvision builds."),
    ):
        assert main(["export", str(run), str(tmp_path / out), "--to", to]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / out).exists()


def test_an_encoder_of_no_library_keeps_its_own_names(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = train({"use": "toy.encoder"}), tmp_path / "toy.safetensors"
    assert main(["export", str(run), str(out)]) == 0
    assert set(load_file(out)) == {"patch.weight", "patch.bias"} and "model =" not in capsys.readouterr().out
    assert json.loads(out.with_suffix(".json").read_text())["library"] == "torch"
    assert main(["export", str(run), str(out), "--to", "timm"]) == 2
    assert "this encoder, toy.encoder. Write --to torch." in capsys.readouterr().err


def test_what_cannot_be_exported_is_one_line(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(VIT)
    capsys.readouterr()
    for words, said in (
        ([str(run), "vit.pth"], "vit.pth: is no name for the file. Write one that ends in .safetensors."),
        ([str(run), "vit.safetensors", "--size", "44"], "--size: wants multiples of the patch, 8 pixels, not 44x44."),
        ([str(run), "vit.safetensors", "--size", "big"], "--size: wants HEIGHTxWIDTH in pixels"),
        ([str(tmp_path), "vit.safetensors"], "is no run's folder"),
    ):
        assert main(["export", *words]) == 2
        err = capsys.readouterr().err
        assert said in err.splitlines()[-1] and "Traceback" not in err


def test_sizes() -> None:
    assert size_of("224") == (224, 224) and size_of("160x240") == (160, 240)
    for text in ("0", "160x", "160x0", "x3", "-3"):
        with pytest.raises(TwinviewError):
            size_of(text)
