"""The command line: what it prints, and that a wrong input gets one line and exit code 2, never a traceback."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from twinview import api
from twinview.cli import main, parser


@pytest.fixture
def recipe(toy: dict[str, Any], photo_shards: str, tmp_path: Path) -> str:
    path = tmp_path / "toy.toml"
    table = {**toy, "data": {"shards": photo_shards, "workers": 0}, "run": {**toy["run"], "device": "cpu"}}
    path.write_text("# A toy recipe\n" + tomli_w.dumps(table))
    return str(path)


def test_train_resume_and_load(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", recipe, "run.checkpoint_every=2", "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"checkpoint  {run}/checkpoints/step-000004" in said and f"pictures    {run}/pictures" in said
    assert main(["train", recipe, "--run", str(run)]) == 2
    assert "holds a run already. Write --resume to go on with it, or --run DIR for" in capsys.readouterr().err
    assert main(["train", recipe, "run.checkpoint_every=2", "--run", str(run), "--resume", "auto"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4] and all("loss/pooled" in r and "spread/online" in r for r in rows)
    assert api.load(run)(torch.zeros(1, 3, 32, 32)).pooled.shape == (1, 8)
    assert main(["show", "views", str(run)]) == 0 and (run / "pictures" / "views.png").is_file()
    assert main(["show", "clusters", str(run)]) == 2
    assert "show clusters: no part of this run draws it. There is: run, views." in capsys.readouterr().err


def test_a_run_killed_before_its_first_checkpoint_starts_again(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", recipe, "--run", str(run)]) == 0
    first = (run / "metrics.jsonl").read_text()
    shutil.rmtree(run / "checkpoints")
    capsys.readouterr()
    assert main(["train", recipe, "--run", str(run), "--resume"]) == 0
    assert "holds no checkpoint yet. Starting at the first step." in capsys.readouterr().err
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in (first, (run / "metrics.jsonl").read_text())]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_kill_between_checkpoint_and_row_loses_no_row(recipe: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", recipe, "--run", str(run)]) == 0
    rows = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("".join(rows.splitlines(keepends=True)[:-1]))
    assert main(["train", recipe, "--run", str(run), "--resume"]) == 0
    assert (run / "metrics.jsonl").read_text() == rows


def test_check_prints_a_recipe_that_reads_back_and_who_answers(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", recipe, "run.steps=9"]) == 0
    said = capsys.readouterr().out
    (tmp_path / "again.toml").write_text(said)
    assert api.check(tmp_path / "again.toml").table() == api.check(recipe, "run.steps=9").table()
    assert "#   sample_views    toy.views" in said and "#   encode          the core" in said and "#   method toy: twinview_toy 1.0" in said


def test_dry_run_writes_nothing(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", recipe, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "images/s" in said and "GiB" in said and "make_encoder    toy.encoder" in said
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts) == [p for p in before if "__pycache__" not in p.parts]


def test_recipes_and_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert any(line.split()[:3] == ["multisiam/quickstart", "MultiSiam", "on"] for line in capsys.readouterr().out.splitlines())
    assert main(["parts"]) == 0
    said = capsys.readouterr().out
    assert "multisiam.iou_crops" in said and "byol.photometry" in said
    assert main(["parts", "multisiam"]) == 0
    said = capsys.readouterr().out
    assert "min_iou = 0.5" in said and "answers sample_views" in said and "byol" not in said.partition("multisiam.iou_crops")[0]
    assert main(["parts", "--installed"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^multisiam +twinview +0\.1\.0 +multisiam\.iou_crops: sample_views", said, re.M) and "multisiam.clusters: " in said


def test_shards(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "pack", "images", str(photographs), str(tmp_path / "out"), "--shard-size", "5"]) == 0
    assert "12 images" in capsys.readouterr().out
    assert main(["shards", "index", str(tmp_path / "out")]) == 0
    assert "12 samples, fields jpg" in capsys.readouterr().out
    assert main(["shards", "scenes", str(tmp_path / "scenes"), "--count", "8", "--size", "48x64"]) == 0
    assert "8 images with 8 label maps" in capsys.readouterr().out


FAULTS: list[tuple[list[str], str]] = [
    (["train", "multisiam/quikstart"], "no recipe has this name. Did you mean 'multisiam/quickstart'"),
    (["train", "none.toml"], "none.toml: there is no such file"),
    (["train", "multisiam/quickstart", "views.min_ioo=1"], "[views] multisiam.iou_crops: nothing takes 'min_ioo'. Did you mean 'min_iou'"),
    (["train", "multisiam/quickstart", "--ranks", "0"], "--ranks: wants a number above 0"),
    (["train", "multisiam/quickstart", "deepspeed.bf16.enabled=true"], "[deepspeed] bf16.enabled"),
    (["train", "multisiam/quickstart", "data.shards=nowhere"], "nowhere: there is no such shard"),
    (["train", "multisiam/quickstart", "--resume", "--run", "no/run"], "no/run: holds no run to go on with"),
    (["check", "multisiam/quickstart", "align.use=multisiam.rio"], "[align] multisiam.rio: multisiam has no part 'rio'. Did you mean 'roi'"),
    (["train", "multisiam/quickstart", "deepspeed.foo=1"], "[deepspeed]: nothing takes 'foo'"),
    (["train", "multisiam/quickstart", "--dry-run", "--resume"], "--dry-run: writes and reads no run"),
    (["train", "multisiam/quickstart", "--run", "afile"], "afile: cannot be made"),
    (["show", "views", "multisiam/quickstart", "--out", "v.txt"], "--out: wants a file that ends in .png or .jpg"),
    (["parts", "multisaim"], "parts: no method 'multisaim' is installed. Did you mean 'multisiam'"),
    (["show", "views", "multisiam/none"], "no recipe has this name"),
    (["show", "clusters", "no/run"], "no/run: there is no run here"),
    (["show", "views", "multisiam/quickstart", "--images", "0"], "--images: wants a number above 0"),
    (["shards", "pack", "images", "no/images", "out"], "no/images"),
    (["shards", "scenes", "out", "--size", "big"], "--size: wants HEIGHTxWIDTH"),
]


@pytest.mark.parametrize(("words", "said"), FAULTS, ids=[" ".join(f[0]) for f in FAULTS])
def test_a_fault_gets_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").touch()
    assert main(words) == 2
    err = capsys.readouterr().err
    last = err.strip().splitlines()[-1]
    assert last.startswith("twinview: ") and said in last and "Traceback" not in err


def test_a_fault_of_a_part_names_its_line(
    toy: dict[str, Any], install: Callable[..., None], photo_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("acme", "from twinview import hookimpl, part\n@part\nclass Bad:\n    @hookimpl\n    def loss(self, step): return 1 / 0\n@hookimpl\ndef parts(): return {'bad': Bad}\n")
    path = tmp_path / "bad.toml"
    path.write_text(tomli_w.dumps({**toy, "loss": [{"use": "acme.bad"}], "data": {"shards": photo_shards, "workers": 0}}))
    assert main(["train", str(path), "--run", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert re.search(r"\[\[loss\]\] acme.bad: loss\(\) raises ZeroDivisionError: division by zero \(.*twinview_acme.py, line 5\)\.$", err)
    assert "return 1 / 0" in err, "its author sees the line"
    assert main(["train", str(path), "--run", str(tmp_path / "run")]) == 2  # a start that made no step does not hold the folder


def test_commands_are_complete() -> None:
    args = parser().parse_args(["train", "r", "a.b=1", "--resume", "--ranks", "2"])
    assert (args.recipe, args.overrides, args.resume, args.ranks) == ("r", ["a.b=1"], True, 2)


def test_what_launchers_put_in_is_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--local_rank=1", "--", "recipes"]) == 0 and "multisiam/camvid" in capsys.readouterr().out


def test_overrides_may_stand_behind_options(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "run.batch_size=3", "--run", str(tmp_path / "run"), "run.steps=1"]) == 0
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["run"]["steps"] == 1
    with pytest.raises(SystemExit) as stopped:
        main(["recipes", "byol", "a=b"])
    assert stopped.value.code == 2 and "unrecognized arguments: a=b" in capsys.readouterr().err


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys; from twinview.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint([m for m in ('torch', 'attrs', 'numpy', 'deepspeed') if m in sys.modules])"
    start = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]" and time.monotonic() - start < 30
