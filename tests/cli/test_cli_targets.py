"""`twinview evaluate` on what is no run: exported files, checkpoints of others, names; and features that are computed once."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from twinview.analysis.targets import find_target
from twinview.cli import main
from twinview.data.loading.feature_cache import stored
from twinview.errors import RecipeError


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two packed sets of small images in two folders, red and blue."""
    import numpy as np
    from PIL import Image

    from twinview.data.prepare.pack import pack
    from twinview.data.writing.writer import Options

    root = tmp_path_factory.mktemp("colored")
    for split, count in (("train", 8), ("val", 4)):
        for n, name in enumerate(("blue", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng([n, i, count]).integers(0, 90, (32, 32, 3), dtype=np.uint8)
                pixels[..., 2 - 2 * n] += 160
                Image.fromarray(pixels).save(folder / f"{i}.png")
        pack("imagefolder", str(root / split), root / f"{split}-shards", Options())
    return root


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TWINVIEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "cache" / "features"


SMALL = ["encoder.width=8", "encoder.stem=small", "size=[32,32]", "data.workers=0", "run.device=cpu"]


def sets(root: Path) -> list[str]:
    return [f"train={root / 'train-shards'}", f"val={root / 'val-shards'}"]


def test_a_checkpoint_of_another_project(colored: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from twinview_torchvision import ResNet

    torch.manual_seed(0)
    net = ResNet(name="resnet18", width=8, stem="small").make_encoder(channels=3)
    torch.save({"state_dict": {f"module.encoder_q.{name}": value for name, value in net.state_dict().items()}}, tmp_path / "moco.pth.tar")
    embedded = ["embed", str(tmp_path / "moco.pth.tar"), str(colored / "val"), "encoder.use=torchvision.resnet", "encoder.name=resnet18", *SMALL[:2], "--size", "32"]
    assert main([*embedded, "--workers", "0", "--out", str(tmp_path / "f.npy")]) == 0 and "images      8" in capsys.readouterr().out
    words = ["evaluate", "knn", str(tmp_path / "moco.pth.tar"), "encoder.use=torchvision.resnet", "encoder.name=resnet18", *SMALL, *sets(colored), "k=[3,5]"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "scores.json: new" in said and "knn top1@k3,t0.07" in said and "weights " in said
    (row,) = json.loads((tmp_path / "moco.pth.tar.scores.json").read_text())["scores"]
    assert row["scores"]["knn/top1@k3,t0.07"] == 100 and set(row["floors"]) == {"random", "pixels"}
    made = sorted(cache.glob("*.safetensors"))
    assert len(made) == 6  # train and val of the weights, of the random start, and of pixels
    times = [file.stat().st_mtime_ns for file in made]
    assert main(words) == 0 and "nothing changed since" in capsys.readouterr().out
    assert main(["evaluate", "linear", *words[2:-1], "solver=ridge"]) == 0  # the same features
    assert "linear top1" in capsys.readouterr().out and sorted(cache.glob("*.safetensors")) == made
    assert [file.stat().st_mtime_ns for file in made] != times  # read, and marked as used
    assert len(json.loads((tmp_path / "moco.pth.tar.scores.json").read_text())["scores"]) == 2


def test_what_is_refused(colored: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pth")
    for target, said in (
        (str(tmp_path / "x.pth"), "holds weights alone. Say of which network they are: encoder.use=torchvision.resnet encoder.name=resnet50"),
        (str(tmp_path / "y.pth"), "y.pth: there is no such file."),
        ("tim:resnet50", "no method 'tim' publishes weights by name. Did you mean 'timm'?"),
        ("timm:resnet5", "timm has no network 'resnet5'. Did you mean"),
        ("timm:resnet50.a1_in2k", "timm publishes no such weights. Did you mean"),
        ("torchvision:resnet50.IMAGENET1K_V3", "torchvision publishes no such weights. Did you mean 'IMAGENET1K_V"),
        ("torchvision:alexnet", "torchvision has no ResNet 'alexnet'."),
        (str(tmp_path), "is no run's folder: it holds no recipe.toml"),
    ):
        assert main(["evaluate", "knn", target, *sets(colored), "size=[32,32]"]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, err


def test_names_say_options_and_colors() -> None:
    found = find_target("timm:vit_small_patch16_224.augreg_in21k", ["data.workers=0"])
    assert found.recipe().encoder.use == "timm.encoder" and found.recipe().data.mean == [0.5] * 3 and found.run is None
    assert found.recipe().encoder.options == {"name": "vit_small_patch16_224", "weights": "timm:vit_small_patch16_224.augreg_in21k"}
    assert found.scores == Path("runs/timm-vit_small_patch16_224.augreg_in21k/scores.json") and found.recipe("some.tar").data.shards == "some.tar"
    found = find_target("torchvision:resnet50", ["encoder.stride=16"])
    assert find_target("torchvision:resnet50,stride=16,weights=x.pth").recipe().encoder.options == {"name": "resnet50", "weights": "x.pth", "stride": 16}
    assert found.recipe().encoder.options == {"name": "resnet50", "weights": "IMAGENET1K_V2", "stride": 16}


def test_features_are_kept_by_weights_and_key(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def make() -> dict[str, Any]:
        asked.append(1)
        return {"x": torch.arange(4.0)}

    net = torch.nn.Linear(2, 2)
    for _ in range(2):
        assert torch.equal(stored(["a", {"size": (3, 4)}], [net], make)["x"], torch.arange(4.0))
    assert len(asked) == 1
    stored(["a", {"size": (4, 3)}], [net], make)
    with torch.no_grad():
        net.bias[0] += 1
    stored(["a", {"size": (3, 4)}], [net], make)
    assert len(asked) == 3
    newest = max(cache.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    newest.write_bytes(b"cut short")
    assert torch.equal(stored(["a", {"size": (3, 4)}], [net], make)["x"], torch.arange(4.0)) and len(asked) == 4
    monkeypatch.setenv("TWINVIEW_FEATURES_GB", "1e-9")
    stored(["b"], [net], make)
    assert len(list(cache.glob("*.safetensors"))) == 1  # the oldest went
    monkeypatch.setenv("TWINVIEW_FEATURES_GB", "much")
    with pytest.raises(RecipeError, match="TWINVIEW_FEATURES_GB: wants a number of gigabytes, not 'much'"):
        stored(["b"], [net], make)
