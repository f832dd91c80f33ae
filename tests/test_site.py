"""The documentation site: it builds without a warning, its links lead somewhere, its code runs, and it leaves nothing out."""
from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import twinview
from twinview.assembly import methods
from twinview.recipe import PartConfig, read
from twinview.testing import conformance

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
FORM = ["What it is", "Parts", "Settings", "Expected", "What was checked"]
METHOD_PAGES = [page for page in PAGES if page.parent.name == "methods" and page.stem != "all"] + [DOCS / f"{name}.md" for name in ("multisiam", "densesiam", "siameseim")]


def blocks(page: Path, language: str) -> list[str]:
    """The code of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_a_page_of_a_method_has_the_one_form(page: Path) -> None:
    heads = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.M)
    assert [head for head in heads if head in FORM] == FORM and heads[0] == FORM[0]


def test_every_method_with_a_loss_has_a_page() -> None:
    there = {page.stem for page in METHOD_PAGES}
    assert set(methods()) - there <= {"detection", "finetune", "masks", "probes", "signals", "timm", "tiny", "torchvision"}  # no losses for pre-training


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_is_code(page: Path) -> None:
    """Python compiles, tables are TOML, and a whole recipe among them assembles; test_docs.py, test_hook_examples.py and the tests below run the rest."""
    for code in blocks(page, "python"):
        if not re.match(r"^\w+\(.*\) -> ", code):  # the signature of a hook
            compile(code, str(page), "exec")
    for text in blocks(page, "toml"):
        table = tomllib.loads(text)
        if {"views", "encoder", "loss", "data", "optimizer", "run"} <= table.keys():
            assert twinview.check(table).parts


def test_the_method_of_thirty_lines_is_right(install: Callable[..., None]) -> None:
    code = next(block for block in blocks(DOCS / "plugins.md", "python") if "VICReg" in block)
    written = [line for line in code.splitlines() if line.strip()]
    assert len(written) < 40
    install("vic", code + '\n\n@hookimpl\ndef parts():\n    return {"loss": Loss}\n')
    conformance("vic.loss", width=16)


def test_what_the_page_of_the_kit_shows_runs(install: Callable[..., None]) -> None:
    planted: dict[str, Any] = runpy.run_path(str(ROOT / "tests" / "testing" / "planted.py"))
    right = planted["RIGHT"].replace("class Loss:", "class Contrast:").replace('"loss": Loss, "views": Views', '"contrast": Contrast, "crops": Views, "nothing": Nothing')
    nothing = "@part\nclass Nothing:\n    \"\"\"Aligns nothing, as an ablation.\"\"\"\n\n    @hookimpl\n    def align(self, step, online, target):\n        return Alignment(lambda m: m, lambda m: m, torch.ones(len(step.batch.keys), *step.grids[online]))\n\n\nPARTS"
    install("acme", right.replace("PARTS", nothing, 1))
    for code in blocks(DOCS / "conformance.md", "python"):
        names: dict[str, Any] = {}
        exec(code.replace("queue=64", "queue=16"), names)
        for name, test in list(names.items()):
            if name.startswith("test_") and name != "test_conforms":
                test()


def test_the_tutorial_in_python(photo_shards: str, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    twinview.train("multisiam/photos", f"data.shards={photo_shards}", "run.steps=1", "run.batch_size=4", "views.size=64", "data.workers=0", run="runs/mine")
    (code,) = blocks(DOCS / "tutorial.md", "python")
    exec(code.replace("photo.jpg", str(photographs / "photo00.jpg")), {})


def test_the_reference_pages_hold_every_key_and_every_part() -> None:
    pages = runpy.run_path(str(ROOT / "website" / "pages.py"))
    recipe, parts = pages["recipe_page"](), pages["parts_page"]()
    import attrs

    from twinview.recipe.tables import OPTIMIZERS, Data, Run, Schedule, Target

    keys = {field.name for table in (Target, Data, Run, Schedule, PartConfig, *OPTIMIZERS.values()) for field in attrs.fields(table)} - {"use", "options"}
    assert not [key for key in keys if f"| `{key}` |" not in recipe]
    assert "### multisiam.iou_crops" in parts and "| `min_iou` |" in parts and "### tiny.encoder" in parts
    assert read({"views": {"use": "a.b"}, "encoder": {"use": "a.b"}, "loss": [{"use": "a.b"}], "data": {"shards": "x"}, "optimizer": {"use": "sgd", "lr": 1}, "run": {"steps": 1}})


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    checked = subprocess.run([sys.executable, str(ROOT / "website" / "links.py"), str(tmp_path / "site")], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert "https://unpkg" not in (tmp_path / "site" / "index.html").read_text()  # it is read without a network


def test_the_readme_is_a_screen_and_a_half() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    outside = re.sub(r"<!-- methods.*?end of methods -->", "", text, flags=re.S)
    assert len(outside.splitlines()) < 110 and "twinview train multisiam/quickstart" in text
