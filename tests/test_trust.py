"""Packages of others: what they ship and what they break is said in one line with their name and version, and nothing is imported that no recipe names."""
from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import twinview
from twinview.assembly import assemble
from twinview.assembly.survey import survey
from twinview.cli import main
from twinview.errors import CheckpointError, PluginError, RecipeError
from twinview.recipe import find, names, read

Install = Callable[..., None]
PART = '''
from twinview import hookimpl, part
@part
class Idle:
    """Does nothing."""
    @hookimpl
    def after_step(self): ...
@hookimpl
def parts(): return {"idle": Idle}
'''


def extra(toy: dict[str, Any], use: str) -> dict[str, Any]:
    return {**toy, "extra": [{"use": use}]}


def metadata(tmp_path: Path, method: str, more: str) -> None:
    path = tmp_path / "site" / f"twinview_{method}-1.0.dist-info" / "METADATA"
    path.write_text(path.read_text() + more)


def test_a_package_for_other_hooks_is_refused_by_name_and_version(toy: dict[str, Any], install: Install) -> None:
    install("later", "TWINVIEW_HOOKS = 2" + PART)
    said = r"^\[\[extra\]\] later\.idle: method 'later' \(twinview_later 1\.0\) was built for version 2 of the hooks, and this is version 1 \(twinview .*hooks\.md"
    with pytest.raises(PluginError, match=said):
        assemble(read(extra(toy, "later.idle")))
    install("today", "TWINVIEW_HOOKS = 1" + PART)
    assert assemble(read(extra(toy, "today.idle")))


def test_a_package_that_asks_for_another_twinview_is_not_even_imported(toy: dict[str, Any], install: Install, tmp_path: Path) -> None:
    install("later", "raise SystemExit('it was imported')" + PART)
    metadata(tmp_path, "later", "Requires-Dist: twinview>=99; extra == 'all'\nRequires-Dist: twinview<9,>=7\n")
    with pytest.raises(PluginError, match=r"method 'later' \(twinview_later 1\.0\) is for twinview<9,>=7, and this is .*\. Install a version of twinview_later that fits\.$"):
        assemble(read(extra(toy, "later.idle")))
    install("fits", PART)
    metadata(tmp_path, "fits", "Requires-Dist: twinview>=0.1\nRequires-Dist: torch\n")
    assert assemble(read(extra(toy, "fits.idle")))


def test_only_what_the_recipe_names_is_imported(toy: dict[str, Any], install: Install) -> None:
    install("bystander", "raise RuntimeError('imported')")
    assert assemble(read(toy)) and names() and "twinview_bystander" not in sys.modules


def test_the_table_of_what_is_installed_survives_everyone(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("toy")
    install("ends", "import os\nos._exit(7)")
    install("raises", "import nowhere")
    install("quits", "raise SystemExit(3)")
    install("talks", "print('hello')" + PART)
    install("toy2", PART, dist="one")
    found = {row.method: row for row in survey(["toy", "ends", "raises", "quits", "talks"])}
    assert (found["toy"].distribution, found["toy"].version) == ("twinview_toy", "1.0") and found["toy"].parts["views"] == ["sample_views"]
    assert found["ends"].fault == "ends the process that imports it (exit code 7)" and not found["ends"].parts
    assert "No module named 'nowhere'" in found["raises"].fault and "SystemExit: 3" in found["quits"].fault
    assert found["talks"].parts == {"idle": ["after_step"]}
    assert main(["parts", "ends", "--installed"]) == 0
    assert "ends           twinview_ends          1.0        ends the process that imports it (exit code 7)" in capsys.readouterr().out


def package(tmp_path: Path, method: str, recipes: dict[str, str]) -> Path:
    """The module that was installed becomes a package with recipes."""
    site = tmp_path / "site"
    folder = site / f"twinview_{method}"
    (folder / "recipes").mkdir(parents=True)
    shutil.move(site / f"twinview_{method}.py", folder / "__init__.py")
    for name, text in recipes.items():
        (folder / "recipes" / name).parent.mkdir(exist_ok=True)
        (folder / "recipes" / name).write_text(text)
    return folder


def test_recipes_that_a_package_ships(toy: dict[str, Any], install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tomli_w

    install("acme", "raise SystemExit('imported')" + PART)
    folder = package(tmp_path, "acme", {"street.toml": f"# Acme on streets\n{tomli_w.dumps(toy)}", "odd.toml": "= 3"})
    assert "acme/street" in names() and find("acme/street") == folder / "recipes" / "street.toml"
    assert read("acme/street").name == "acme/street"
    assert main(["recipes"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["acme/street"].endswith("Acme on streets (twinview_acme 1.0)") and "is no TOML" in lines["acme/odd"]
    assert "(" not in lines["multisiam/quickstart"] or "twinview " not in lines["multisiam/quickstart"]
    with pytest.raises(RecipeError, match=r"^acme/stret: no recipe has this name\. Did you mean 'acme/street'"):
        read("acme/stret")


def test_two_packages_with_one_recipe(install: Install, tmp_path: Path) -> None:
    install("multisiam", PART, dist="twinview_multisiam2")
    site = tmp_path / "site"
    (site / "twinview_multisiam2" / "recipes").mkdir(parents=True)
    shutil.move(site / "twinview_multisiam2.py", site / "twinview_multisiam2" / "__init__.py")
    (site / "twinview_multisiam2" / "recipes" / "quickstart.toml").write_text("# another\n")
    with pytest.raises(RecipeError, match=r"^multisiam/quickstart: is offered by twinview and by twinview_multisiam2 1\.0\. Uninstall all but one"):
        find("multisiam/quickstart")


def test_a_run_goes_on_with_the_same_packages_alone(toy: dict[str, Any], install: Install, photo_shards: str, tmp_path: Path) -> None:
    table = {**toy, "data": {"shards": photo_shards, "workers": 0}, "run": {**toy["run"], "steps": 2, "checkpoint_every": 1, "device": "cpu"}}
    folder = tmp_path / "run"
    twinview.train(table, run=folder)
    assert json.loads((folder / "manifest.json").read_text())["methods"] == {"toy": "twinview_toy 1.0"}
    shutil.rmtree(folder / "checkpoints" / "step-000002")
    (folder / "checkpoints" / "latest").write_text("step-000001")
    info = tmp_path / "site" / "twinview_toy-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: twinview_toy\nVersion: 2.0\n")
    info.rename(info.with_name("twinview_toy-2.0.dist-info"))
    said = r"method 'toy' came from twinview_toy 1\.0 when the run began, and now comes from twinview_toy 2\.0\. Install twinview_toy 1\.0 again, or write run\.any_versions=true"
    with pytest.raises(CheckpointError, match=said):
        twinview.train(table, run=folder, resume=True)
    assert twinview.train(table, "run.any_versions=true", run=folder, resume=True).step == 2
    assert json.loads((folder / "manifest.json").read_text())["methods"] == {"toy": "twinview_toy 2.0"}
