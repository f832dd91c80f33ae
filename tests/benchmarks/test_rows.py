"""Benchmarks never pass off rows of other code as of this one."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from proof.data import require_shards  # noqa: E402
from proof.rows import Rows, code_hash, commit, methods_of, table_hash  # noqa: E402


def rows(path: Path, code: str = "new") -> Rows:
    return Rows(path, ("method", "seed"), code=code, at=f"c-{code}")


def test_a_row_is_found_again_by_its_own_code_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "made" / "rows.jsonl"
    old = rows(path, "old")
    assert old.find(method="byol", seed=0, recipe_hash="r") is None
    old.add({"method": "byol", "seed": 0, "recipe_hash": "r", "score": 1.0})
    assert old.find(method="byol", seed=0, recipe_hash="r")
    assert not capsys.readouterr().err

    new = rows(path, "new")
    assert new.find(method="byol", seed=0, recipe_hash="r") is None and not new.of_this_code()
    assert "!!! rows.jsonl: byol 0 is there, made with OTHER CODE (commit c-old; here c-new). It is made anew." in capsys.readouterr().err
    new.add({"method": "byol", "seed": 0, "recipe_hash": "r", "score": 2.0})
    again = rows(path, "new").find(method="byol", seed=0, recipe_hash="r")
    assert again is not None and again["score"] == 2.0 and again["commit"] == "c-new"
    assert len(path.read_text().splitlines()) == 2  # nothing was lost


@pytest.mark.parametrize("other", [{"seed": 1}, {"method": "simsiam"}, {"recipe_hash": "s"}])
def test_another_run_or_recipe_is_another_row(other: dict[str, Any], tmp_path: Path) -> None:
    here = rows(tmp_path / "rows.jsonl")
    key: dict[str, Any] = {"method": "byol", "seed": 0, "recipe_hash": "r"}
    here.add(key)
    assert here.find(**key) and here.find(**{**key, **other}) is None


def test_a_row_without_code_is_of_other_code(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"method": "byol", "seed": 0}) + "\n")
    assert rows(path).find(method="byol", seed=0) is None


def test_the_code_is_what_trains_and_not_what_explains(tmp_path: Path) -> None:
    for name in ("core/twinview/a.py", "plugins/twinview_x/b.py", "docs/c.md", "core/note.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    first = code_hash(tmp_path)
    (tmp_path / "docs/c.md").write_text("2")
    (tmp_path / "core/note.txt").write_text("2")
    assert code_hash(tmp_path) == first
    (tmp_path / "plugins/twinview_x/b.py").write_text("2")
    assert code_hash(tmp_path) != first
    assert commit(tmp_path) == "unknown"


def test_a_new_method_leaves_the_code_of_the_others_as_it_is(tmp_path: Path) -> None:
    recipe = {"loss": [{"use": "x.image"}, {"use": "y.dense", "weight": 0.5}], "optimizer": {"use": "adamw"}, "encoder": {"use": "x.net"}}
    assert methods_of(recipe) == {"x", "y"}
    for name in ("core/twinview/a.py", "plugins/twinview_x/b.py", "plugins/twinview_y/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    first = code_hash(tmp_path, methods_of(recipe))
    (tmp_path / "plugins/twinview_z").mkdir()
    (tmp_path / "plugins/twinview_z/b.py").write_text("1")
    assert code_hash(tmp_path, methods_of(recipe)) == first != code_hash(tmp_path)
    (tmp_path / "plugins/twinview_y/b.py").write_text("2")
    assert code_hash(tmp_path, methods_of(recipe)) != first


def test_the_hash_of_a_recipe_does_not_depend_on_the_order_of_its_tables() -> None:
    assert table_hash({"a": {"b": 1}, "c": 2}) == table_hash({"c": 2, "a": {"b": 1}}) != table_hash({"a": {"b": 2}, "c": 2})


def test_missing_shards_are_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        require_shards(tmp_path, "camvid-train")
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
