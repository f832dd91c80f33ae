"""`twinview new method`: what it writes installs, keeps what is promised of parts, trains, and is clean."""
from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import twinview
from twinview.cli import main
from twinview.scaffold.method import KINDS
from twinview.testing import Setting, parts_of, small_shards
from twinview.testing.conform import checks_of, failures_of
from twinview.testing.trial import Trial


def installed(folder: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `pip install -e` would: the source root on the path, and the metadata beside it."""
    info = folder / "src" / f"twinview_{method}-0.1.0.dist-info"
    info.mkdir()
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    needs = "".join(f"Requires-Dist: {word}\n" for word in project["dependencies"])
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n{needs}")
    (info / "entry_points.txt").write_text("[twinview]\n" + "".join(f"{k} = {v}\n" for k, v in project["entry-points"]["twinview"].items()))
    monkeypatch.syspath_prepend(str(folder / "src"))
    importlib.invalidate_caches()


@pytest.fixture
def sketch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a part of every kind, installed."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", "method", "sketch_it", "--parts", ",".join(KINDS), "--author", "A. Person"]) == 0
    installed(tmp_path / "twinview-sketch-it", "sketch_it", monkeypatch)
    return tmp_path / "twinview-sketch-it"


def test_every_kind_of_part_conforms(sketch: Path) -> None:
    text = (sketch / "tests" / "test_sketch_it.py").read_text()
    options = eval(text.partition("options=")[2].partition(")\ndef")[0])
    assert parts_of("sketch_it") == [f"sketch_it.{kind}" for kind in KINDS]
    found = []
    for kind in KINDS:
        trial = Trial(f"sketch_it.{kind}", options.get(kind, {}), Setting())
        found += [failure for check in checks_of(trial.subject) if check.name != "resumes" for failure in failures_of(trial, check)]
    assert not found, "\n".join(map(str, found))


def test_its_recipe_trains_and_it_is_clean(sketch: Path, tmp_path: Path) -> None:
    assert twinview.check("sketch_it/quickstart").parts
    small = ["run.steps=2", "run.batch_size=4", "views.size=64", "run.precision=fp32", "data.workers=0", "encoder.width=16"]
    assert twinview.train("sketch_it/quickstart", f"data.shards={small_shards()}", *small, run=tmp_path / "run").scores["uniformity"] < 0
    subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=sketch, check=True)
    names = {str(path.relative_to(sketch)) for path in sketch.rglob("*") if path.is_file() and "dist-info" not in str(path)}
    assert {"LICENSE", "README.md", ".gitignore", ".github/workflows/tests.yml", "src/twinview_sketch_it/py.typed"} <= names
    assert "A. Person" in (sketch / "LICENSE").read_text() and "$" not in (sketch / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone_has_a_recipe_that_assembles(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = f"only_{kind}"
    assert main(["new", "method", method, "--parts", kind, "--out", str(tmp_path / "out")]) == 0
    installed(tmp_path / "out", method, monkeypatch)
    assert f"{method}.{kind}" in {use.use for _, _, use in twinview.check(f"{method}/quickstart").uses.values()}


@pytest.mark.parametrize(("words", "said"), [
    (["Acme"], "'Acme' is no name. Write small letters"),
    (["class"], "'class' is no name"),
    (["byol"], "a method 'byol' is installed already"),
    (["acme", "--parts", "los"], "there is no kind of part 'los'. Did you mean 'loss'?"),
    (["acme", "--parts", "loss,loss"], "each once"),
    (["acme", "--description", 'so "good"'], "one line without quotation marks"),
    (["acme", "--out", "."], "is there already. Name another folder with --out"),
])
def test_what_cannot_be_is_one_line(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    assert main(["new", "method", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and [path.name for path in tmp_path.iterdir()] == ["there"]
