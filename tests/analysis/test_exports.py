"""Exports: what another library loads gives what the encoder gives; where the library is not here, keys and shapes are those that it expects."""
from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import twinview
from twinview.analysis.exports import graphs, huggingface
from twinview.analysis.exports.detection import _groups, mmseg_vit_key
from twinview.analysis.targets import find_target
from twinview.cli import main

VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 48, "depth": 2, "heads": 3, "img_size": 32, "pooled": "token"}
RESNET = {"use": "torchvision.resnet", "name": "resnet18"}
KINDS = {"vit": VIT, "mean": {**VIT, "pooled": "mean"}, "both": {**VIT, "pooled": "token_and_mean"}, "resnet": RESNET}


@pytest.fixture(scope="module")
def runs(photo_shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of one step of each kind of encoder."""
    folder, found = tmp_path_factory.mktemp("exports"), {}
    for name, encoder in KINDS.items():
        table: dict[str, Any] = {
            "views": {"use": "byol.crops", "size": 32}, "encoder": encoder, "loss": [{"use": "byol.image", "hidden": 8, "channels": 4}],
            "data": {"shards": photo_shards, "workers": 0}, "optimizer": {"use": "sgd", "lr": 0.1}, "run": {"steps": 1, "batch_size": 4, "device": "cpu"},
        }  # fmt: skip
        found[name] = twinview.train(table, run=folder / name).folder
    return found


def exported(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["export", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("to", ["onnx", "torchscript"])
def test_graphs_give_what_the_encoder_gives(kind: str, to: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / f"encoder{'.onnx' if to == 'onnx' else '.pt'}"
    said = exported(capsys, runs[kind], out, "--to", to)
    scale = said["checked"]["scale"]  # of a ResNet after one step the features may be far from 1
    assert said["checked"]["difference"] < 1e-5 * max(scale, 10) and "images of the run's data" in said["checked"]["on"]
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        own = twinview.load(runs[kind])(images).pooled
    if to == "onnx":
        import onnxruntime

        theirs = torch.from_numpy(onnxruntime.InferenceSession(str(out)).run(["pooled"], {"images": images.numpy()})[0])
    else:
        theirs = torch.jit.load(str(out))(images)[0]  # type: ignore[no-untyped-call]
    assert float((own - theirs).abs().max()) < 1e-5 * max(scale, float(own.abs().max()), 10)


def test_the_graph_of_a_resnet_takes_any_size(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    said = exported(capsys, runs["resnet"], tmp_path / "encoder.onnx", "--to", "onnx")
    assert not said["notes"] and "64x96" in said["checked"]["on"]


@pytest.mark.parametrize("kind", ["vit", "mean", "resnet"])
def test_a_folder_of_the_hub_loads_by_timm_and_transformers(kind: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    out = tmp_path / "hub"
    said = exported(capsys, runs[kind], out, "--to", "huggingface", "--license", "apache-2.0", "--branch", "target")
    assert said["checked"]["difference"] < 1e-4 and "timm" in said["checked"]["by"]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        own = twinview.load(runs[kind], branch="target")(images).pooled
        model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        assert float((model(images) - own).abs().max()) < 1e-4
    assert json.loads((out / "preprocessor_config.json").read_text())["size"] == {"height": 32, "width": 32}
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card and "checksum" in card and "[encoder]" in card
    if not said["notes"]:
        assert "transformers" in said["checked"]["by"]


def expected_detectron2(depths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Of detectron2's `build_resnet_backbone` with basic blocks, by its own source: stem, res2 to res5, FrozenBatchNorm's four tensors."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, inside: int, k: int) -> None:
        shapes[f"{name}.weight"] = (out, inside, k, k)
        shapes.update({f"{name}.norm.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")})

    conv("stem.conv1", 64, 3, 7)
    inside = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for block in range(depth):
            conv(f"res{stage + 2}.{block}.conv1", width, inside, 3)
            conv(f"res{stage + 2}.{block}.conv2", width, width, 3)
            if inside != width:
                conv(f"res{stage + 2}.{block}.shortcut", width, inside, 1)
            inside = width
    return shapes


def test_detection_files_have_the_keys_and_shapes_that_are_expected(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exported(capsys, runs["resnet"], tmp_path / "d2.pkl", "--to", "detectron2")
    assert "not installed here" in said["checked"]["on"] and any("STRIDE_IN_1X1 = False" in line for line in said["code"])
    assert "cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64" in said["code"]  # of basic blocks
    assert [_groups(name) for name in ("resnet50", "resnext101_64x4d", "wide_resnet50_2")] == [(1, 64), (64, 4), (1, 128)]
    model = pickle.loads((tmp_path / "d2.pkl").read_bytes())["model"]
    assert {name: value.shape for name, value in model.items()} == expected_detectron2((2, 2, 2, 2))
    tensors = find_target(runs["resnet"]).encoder.state_dict()
    assert torch.equal(torch.from_numpy(model["res3.0.shortcut.norm.running_var"]), tensors["layer2.0.downsample.1.running_var"])
    for to in ("mmdet", "mmseg"):
        exported(capsys, runs["resnet"], tmp_path / "mm.pth", "--to", to)
        state = torch.load(tmp_path / "mm.pth", weights_only=True)["state_dict"]
        assert {name.removeprefix("backbone.") for name in state} == tensors.keys()  # mm's ResNet keeps torchvision's names
    exported(capsys, runs["vit"], tmp_path / "vit.pth", "--to", "mmseg")
    state = torch.load(tmp_path / "vit.pth", weights_only=True)["state_dict"]
    layer = ("ln1.weight", "ln1.bias", "attn.attn.in_proj_weight", "attn.attn.in_proj_bias", "attn.attn.out_proj.weight", "attn.attn.out_proj.bias", "ln2.weight",
             "ln2.bias", "ffn.layers.0.0.weight", "ffn.layers.0.0.bias", "ffn.layers.1.weight", "ffn.layers.1.bias")  # fmt: skip
    wanted = {"cls_token", "pos_embed", "patch_embed.projection.weight", "patch_embed.projection.bias", "ln1.weight", "ln1.bias"}
    assert {name.removeprefix("backbone.") for name in state} == wanted | {f"layers.{n}.{name}" for n in range(2) for name in layer}
    assert mmseg_vit_key("blocks.11.mlp.fc2.bias") == "layers.11.ffn.layers.1.bias"


def test_what_cannot_be_exported_is_one_line(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([runs["vit"], tmp_path / "x.pkl", "--to", "detectron2"], "takes torchvision's ResNets"),
        ([runs["resnet"], tmp_path / "x.pt", "--to", "onnx"], "ends in .onnx"),
        ([runs["resnet"], tmp_path / "x.onnx", "--to", "huggingface"], "writes a folder"),
        ([runs["resnet"], tmp_path / "x.onnx", "--to", "onnx", "--license", "mit"], "--license"),
    ):
        assert main(["export", *map(str, words)]) == 2
        err = capsys.readouterr().err
        assert said in err.splitlines()[-1] and "Traceback" not in err


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The line that a command ends with."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_what_loads_back_as_another_network_is_refused_and_not_kept(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused(capsys, "export", runs["both"], tmp_path / "both", "--to", "huggingface")
    assert "loads it back with outputs of shape [4, 48], where the encoder gives [4, 96]. Nothing is kept." in line
    assert not (tmp_path / "both").exists()
    for to, name in (("huggingface", "hub"), ("torchscript", "e.pt"), ("onnx", "e.onnx")):
        if to == "onnx":
            pytest.importorskip("onnxruntime")
        out = tmp_path / to / name
        exported(capsys, runs["resnet"], out, "--to", to)
        before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
        with monkeypatch.context() as patched:
            off = (float("nan") if to == "onnx" else 0.5, 2.0)
            for module, what in ((huggingface, "difference"), (graphs, "compared")):
                patched.setattr(module, what, lambda *_, off=off: off)
            line = refused(capsys, "export", runs["mean"], out, "--to", to)
        assert line.startswith(f"twinview: --to {to}: ") and "loads back another network than was written: largest difference" in line
        assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before  # the earlier export, and nothing else


def test_an_export_writes_over_an_earlier_one_and_over_nothing_else(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "config.json"
    kept.write_text('{"mine": 1}')
    line = refused(capsys, "export", runs["vit"], tmp_path / "config.safetensors")
    assert line.startswith(f"twinview: {kept}: is there already, and `twinview export` did not write it.")
    assert kept.read_text() == '{"mine": 1}' and not (tmp_path / "config.safetensors").exists()
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("# My model")
    assert "README.md: is there already" in refused(capsys, "export", runs["vit"], tmp_path / "card", "--to", "huggingface")
    for to, name in (("safetensors", "e.safetensors"), ("huggingface", "hub"), ("torchscript", "e.pt"), ("onnx", "e.onnx"), ("mmseg", "e.pth")):
        if to == "onnx":
            pytest.importorskip("onnxruntime")
        for _ in range(2):
            exported(capsys, runs["vit"], tmp_path / name, "--to", to)
        if to != "huggingface":
            other = tmp_path / f"other{Path(name).suffix}"
            other.write_bytes(b"somebody's")
            assert f"{other}: is there already" in refused(capsys, "export", runs["vit"], other, "--to", to)
            assert other.read_bytes() == b"somebody's"
    for _ in range(2):
        exported(capsys, runs["resnet"], tmp_path / "d2.pkl", "--to", "detectron2")


def test_a_graph_of_one_size_says_so_in_a_sentence(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exported(capsys, runs["mean"], tmp_path / "e.pt", "--to", "torchscript")
    found = 'takes images of 32x32 alone. At 40x48 it failed: "The size of tensor a (30) must match the size of tensor b (16)'
    assert len(said["notes"]) == 1 and said["notes"][0].startswith(found)
