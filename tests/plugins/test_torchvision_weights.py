from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from twinview.errors import CheckpointError, RecipeError
from twinview_torchvision import ResNet


def start(seed: int, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return ResNet(**options).make_encoder(channels=3)  # type: ignore[arg-type]


def same(a: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, state[k]) for k, v in a.state_dict().items())


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    encoder = start(1)
    encoder(torch.randn(4, 3, 32, 32))  # moves the running statistics
    return encoder.state_dict()


def put(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.encoder_q."])
def test_a_bare_state_dict_under_any_prefix(tmp_path: Path, trained: dict[str, Tensor], prefix: str) -> None:
    torch.save({**put(prefix, {**trained, "fc.weight": torch.zeros(10, 512)}), **({"queue": torch.zeros(3)} if prefix else {})}, tmp_path / "a.pth")
    assert same(start(2, weights=str(tmp_path / "a.pth")), trained)


def test_a_checkpoint_with_both_branches_gives_the_online_one(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    other = start(5).state_dict()
    model = {**put("target.encoder.", other), **put("online.encoder.", trained), "online.heads.p.weight": torch.zeros(2)}
    torch.save({"model": model, "step": 7, "recipe": {"name": "x"}}, tmp_path / "a.pt")
    assert same(start(2, weights=str(tmp_path / "a.pt")), trained)


def test_the_folder_of_a_run_or_of_a_checkpoint(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    for name, state in (("step-000050", start(5).state_dict()), ("step-000100", trained)):
        (tmp_path / "run/checkpoints" / name).mkdir(parents=True)
        torch.save(put("online.encoder.", state), tmp_path / "run/checkpoints" / name / "model.pt")
    (tmp_path / "run/checkpoints/latest").write_text("step-000100")
    assert same(start(2, weights=str(tmp_path / "run")), trained)
    assert same(start(2, weights=str(tmp_path / "run/checkpoints/step-000050")), start(5).state_dict())
    with pytest.raises(CheckpointError, match="there is no such file"):
        start(2, weights=str(tmp_path))


Save = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Any]]
LAYOUTS: dict[str, tuple[Save, str, str]] = {  # as published: the tables of the file, and the word that chooses each of its two encoders
    "DINO": (lambda a, b: {"student": put("module.backbone.", a), "teacher": put("backbone.", b), "optimizer": {"state": {0: {}}}, "epoch": 7}, "student", "teacher"),
    "MoCo": (lambda a, b: {"epoch": 3, "state_dict": {**put("module.encoder_q.", a), **put("module.encoder_k.", b), "module.queue": torch.zeros(2)}}, "encoder_q", "encoder_k"),
    "MoCo v3": (lambda a, b: {"state_dict": {**put("module.base_encoder.", a), **put("module.momentum_encoder.", b)}}, "base_encoder", "momentum_encoder"),
    "solo-learn": (lambda a, b: {"state_dict": {**put("backbone.", a), **put("momentum_backbone.", b)}, "hyper_parameters": {"lr": 0.1}}, "backbone", "momentum_backbone"),
    "I-JEPA": (lambda a, b: {"encoder": put("module.", a), "target_encoder": put("module.", b), "predictor": {}}, "encoder", "target_encoder"),
    "twinview": (lambda a, b: {"model": {**put("online.encoder.", a), **put("target.encoder.", b)}}, "online", "target"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_of_several_encoders_is_chosen_and_none_is_guessed_at(tmp_path: Path, trained: dict[str, Tensor], layout: str) -> None:
    save, first, second = LAYOUTS[layout]
    other = start(5).state_dict()
    path = str(tmp_path / "a.pt")
    torch.save(save(trained, other), path)
    assert same(start(2, weights=path, weights_key=first), trained)
    assert same(start(2, weights=path, weights_key=second), other)
    with pytest.raises(CheckpointError, match=r"holds no encoder under 'ema'\. There is: "):
        start(2, weights=path, weights_key="ema")
    if layout != "twinview":  # whose online branch is what is meant
        with pytest.raises(CheckpointError, match=f"holds several encoders: .*weights_key = '{first}' or weights_key = '{second}'"):
            start(2, weights=path)


def test_the_average_beside_a_model_is_left_aside_unless_chosen(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    other, path = start(5).state_dict(), str(tmp_path / "a.pt")
    torch.save({"state_dict": trained, "state_dict_ema": other}, path)  # as timm's training script saves
    assert same(start(2, weights=path), trained) and same(start(2, weights=path, weights_key="state_dict_ema"), other)


def test_a_key_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="weights_key chooses one of several encoders in the file of weights"):
        start(2, weights_key="teacher")


def test_safetensors_and_dilation(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    save_file(trained, tmp_path / "a.safetensors")
    assert same(start(2, weights=str(tmp_path / "a.safetensors"), stride=8), trained)


def test_the_pyramid_may_be_missing_but_not_half_of_it(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    whole = start(1, fpn=True, fpn_channels=8).state_dict()
    torch.save(whole, tmp_path / "whole.pt")
    torch.save({k: v for k, v in whole.items() if k != "fpn.layer_blocks.0.0.bias"}, tmp_path / "half.pt")
    torch.save(trained, tmp_path / "trunk.pt")
    options = {"fpn": True, "fpn_channels": 8}
    assert same(start(2, weights=str(tmp_path / "whole.pt"), **options), whole)
    from_trunk, fresh = start(2, weights=str(tmp_path / "trunk.pt"), **options).state_dict(), start(2, **options).state_dict()
    assert all(torch.equal(v, fresh[k] if k.startswith("fpn.") else trained[k]) for k, v in from_trunk.items())
    with pytest.raises(CheckpointError, match=r"it lacks fpn\.layer_blocks\.0\.0\.bias\."):
        start(2, weights=str(tmp_path / "half.pt"), **options)
    with pytest.raises(CheckpointError, match=r"the encoder has no fpn\."):
        start(2, weights=str(tmp_path / "whole.pt"))


def test_what_does_not_fit_is_named(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    torch.save({k: v for k, v in trained.items() if not k.startswith("layer3")}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"it lacks layer3\.0\.conv1\.weight, .* and \d+ more\."):
        start(2, weights=str(tmp_path / "a.pt"))
    torch.save(trained, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"it has conv1\.weight \(64, 3, 7, 7\), not \(64, 3, 3, 3\)"):
        start(2, weights=str(tmp_path / "b.pt"), stem="small")


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("IMAGENET1K_V3", RecipeError, "no weights have the name 'IMAGENET1K_V3'. Did you mean 'IMAGENET1K_V1'?"),
        ("timm:resnet18.a1_in1", RecipeError, "timm has no weights 'resnet18.a1_in1'. Did you mean 'resnet18.a1_in1k'?"),
        ("nowhere/a.pt", CheckpointError, "there is no such file"),
        ("a.pth", CheckpointError, "there is no such file"),
    ],
)
def test_unknown_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: type[Exception], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as error:
        start(0, weights=source)
    assert message in str(error.value) and str(error.value).startswith("[encoder] weights") and "\n" not in str(error.value)


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run by unpickling",)


def test_files_from_before_torch_1_6_are_read(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    torch.save(trained, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(start(2, weights=str(tmp_path / "old.pth")), trained)


def test_damaged_foreign_and_empty_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 not whole")
    (tmp_path / "damaged.safetensors").write_bytes(b"1234567890")
    torch.save({"model": Code()}, tmp_path / "code.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    (tmp_path / "notes.txt").write_text("hidden units: 12\n")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    (tmp_path / "nothing.pt").touch()
    faults = [("damaged.pt", "cannot be read"), ("damaged.safetensors", "cannot be read"), ("code.pt", "could run programs"), ("empty.pt", "no tensors")]
    faults += [(name, "is no file of weights. Give one that torch.save wrote, or a .safetensors") for name in ("notes.txt", "photo.jpg", "nothing.pt")]
    for name, message in faults:
        with pytest.raises(CheckpointError) as error:
            start(0, weights=str(tmp_path / name))
        assert message in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_torchvisions_names_use_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: dict[str, Tensor]) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({**trained, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, tmp_path / "hub/checkpoints/resnet18-f37072fd.pth")
    assert same(start(2, weights="IMAGENET1K_V1"), trained)


def test_timms_names_and_no_draw_is_spent_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    real = timm.create_model
    made: list[nn.Module] = []

    def create(name: str, pretrained: bool) -> nn.Module:
        assert pretrained and name == "resnet18.a1_in1k"
        made.append(real(name, pretrained=False))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", create)
    encoder = start(2, weights="timm:resnet18.a1_in1k")
    after = torch.rand(1)
    assert same(encoder, made[0].state_dict())
    start(2)
    assert torch.equal(after, torch.rand(1))


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import urllib.request

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(CheckpointError, match="cannot be fetched: no route to host") as error:
        start(0, weights="IMAGENET1K_V1")
    assert "\n" not in str(error.value)
