"""`twinview plan`: recipes that come along, without data, without a GPU."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from twinview.cli import main


@pytest.mark.parametrize(("name", "small"), [
    ("multisiam/waymo_r50", ["views.size=64", "encoder.name=resnet18"]),
    ("densesiam/quickstart", ["views.size=[64, 64]"]),
    ("siameseim/imagenet_vits16", ["views.size=64", "masks.count=8", "encoder.depth=3"]),
    ("byol/camvid", ["views.size=64", "data.channels=4", "data.mean='shards'", "data.std='shards'", "augment={use='byol.photometry', grey=0.0, hue=0.0, saturation=0.0}"]),
])
def test_recipes_are_planned_without_their_data(name: str, small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", name, "data.shards=nowhere", "evaluate=[]", *small, "--gpus", "8", "--memory", "80", "--bandwidth", "50"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    for word in ("stage 0", "stage 3", "weights, online", "activations", "together", "most images at once", "sent by a GPU in a step, GB", "seconds", "take"):
        assert word in said, word
    assert "no data opened" in said and not list(tmp_path.iterdir())


def test_json_has_everything_in_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "siameseim/cifar10_vit_tiny", "data.shards=nowhere", "evaluate=[]", "--gpus", "2", "--memory", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["stage"] for c in found["stages"]] == [0, 1, 2, 3] and found["take"] == 0 and found["machine"]["gpus"] == 2
    for choice in found["stages"]:
        assert choice["total"] == sum(choice["memory"].values()) and all(isinstance(v, int) for v in choice["memory"].values())


def test_what_is_wrong_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [
        (["--gpus", "0", "--memory", "8"], "--gpus: wants a number above 0, not 0."),
        (["--gpus", "7", "--memory", "8"], "does not divide by 7 ranks"),
        (["run.batch_siz=4", "--memory", "8"], "Did you mean 'batch_size'?"),
        (["--memory", "-1"], "--memory: wants a number above 0, not -1."),
    ]
    if not torch.cuda.is_available():
        wrong.append(([], "--memory: this machine shows no GPU whose memory could be asked for. Write --memory 80, in GiB."))
    for words, line in wrong:
        assert main(["plan", "byol/camvid", *words]) == 2
        said = capsys.readouterr()
        assert line in said.err and said.err.count("\n") == 1 and not said.out, words
