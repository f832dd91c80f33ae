"""What a run's folder says of where its data lies: no signature, and relative paths that are found from elsewhere."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from twinview.cli import main
from twinview.data.dataset.open import open_data, open_shards
from twinview.data.remote.base import LEFT_OUT, shown, without_queries
from twinview.engine.run_recipe import run_recipe
from twinview.engine.train import train
from twinview.errors import DataError, RecipeError
from twinview.ops.weights import load_weights
from twinview.recipe import from_table, read

SIGNED = "https://host/street-{000..003}.tar?X-Amz-Signature=abc123&Expires=9"


def test_queries_of_urls_are_left_out_wherever_they_stand() -> None:
    table = {"data": {"shards": [SIGNED, f"pipe:curl '{SIGNED}' -o -", "plain.tar", "s3://b/x.tar"], "workers": 2}, "evaluate": [{"val": SIGNED}]}
    found = json.dumps(without_queries(table))
    assert "abc123" not in found and "Expires" not in found and found.count("(left out)") == 3
    assert without_queries(without_queries(table)) == without_queries(table)
    assert without_queries(f'twinview train x data.shards=["{SIGNED}","b.tar"] run.steps=1') == (
        f'twinview train x data.shards=["https://host/street-{{000..003}}.tar{LEFT_OUT}","b.tar"] run.steps=1'
    )
    assert "abc123" not in shown(SIGNED) and "abc123" not in shown(f"pipe:curl {SIGNED} -o -") and "curl" in shown(f"pipe:curl {SIGNED}")
    with pytest.raises(DataError, match=r"^https://host/street-000\.tar: what stands behind the \? of a URL may be a signature, and is not kept in a run's folder\. Write the whole URL"):
        open_shards(without_queries(SIGNED))


def test_a_signed_url_stands_in_no_file_of_a_run(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny run's shards, named by a URL whose server is this machine."""
    monkeypatch.setattr("twinview.engine.setup.open_data", lambda data, *rest: open_data(from_table(tiny).data, *rest))
    table = {**tiny, "data": {**tiny["data"], "shards": SIGNED}, "run": {**tiny["run"], "steps": 2}}
    train(from_table(table), tmp_path / "run", command=f"twinview train tiny data.shards={SIGNED}")
    held = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and b"abc123" in path.read_bytes()]
    assert not held and LEFT_OUT in (tmp_path / "run/recipe.toml").read_text(encoding="utf-8")
    more = {**table, "run": {**table["run"], "steps": 2}}
    assert train(from_table(more), tmp_path / "run", resume=True).step == 2, "the same recipe goes on"


def test_relative_paths_of_a_run_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: dict[str, Any]) -> None:
    (tmp_path / "began/shards").mkdir(parents=True)
    (tmp_path / "began/shards/a-0.tar").touch()
    (tmp_path / "began/photos").mkdir()
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    recipe = read({**toy, "data": {"shards": ["shards/a-{0..3}.tar", "images:photos", "scenes:val", "https://h/x.tar", "gone.tar"]}})
    recipe_toml = __import__("tomli_w").dumps(recipe.table())
    (run / "recipe.toml").write_text(recipe_toml)
    (run / "manifest.json").write_text(json.dumps({"sittings": [{"folder": str(tmp_path / "began")}]}))
    monkeypatch.chdir(elsewhere)
    began = tmp_path / "began"
    assert run_recipe(run).data.shards == [f"{began}/shards/a-{{0..3}}.tar", f"images:{began}/photos", "scenes:val", "https://h/x.tar", "gone.tar"]
    (elsewhere / "photos").mkdir()
    assert run_recipe(run).data.shards[1] == "images:photos", "what is here is meant"
    monkeypatch.chdir(began)
    assert run_recipe(run).data.shards == recipe.data.shards
    (run / "manifest.json").write_text("{}")
    monkeypatch.chdir(elsewhere)
    assert run_recipe(run).data.shards == recipe.data.shards, "an older run does not say"


def test_a_tilde_is_a_home_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    os.symlink(photographs, tmp_path / "photos")
    assert main(["shards", "pack", "images", "~/photos", "~/packed"]) == 0 and (tmp_path / "packed/manifest.json").is_file()
    assert main(["shards", "check", "~/packed"]) == 0 and main(["shards", "stat", "images:~/photos", "--out", "~/sheet.png"]) == 0
    assert main(["shards", "pack", "webdataset", "~/packed", "~/again"]) == 0 and (tmp_path / "sheet.png").is_file()
    capsys.readouterr()
    for words in (["show", "run", "~/run"], ["export", "~/run", "~/a.safetensors"]):
        assert main(words) == 2 and str(tmp_path) in capsys.readouterr().err
    assert main(["shards", "pack", "images", "~nobody-has-this-name/x", "~/out"]) == 2
    assert "SOURCE: ~nobody-has-this-name/x: there is no such user" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="~nobody-has-this-name/w.pt: there is no such user"):
        load_weights(__import__("torch").nn.Linear(1, 1), "~nobody-has-this-name/w.pt")
