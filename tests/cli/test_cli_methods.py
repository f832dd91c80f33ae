"""`twinview methods` and `twinview recipes`, and the table of methods in the README."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from twinview.assembly import methods
from twinview.cli import main
from twinview.cli.methods import BEGIN, END, first_sentence, installed_methods
from twinview.recipe.library import names

ROOT = Path(__file__).resolve().parents[2]


def test_every_installed_method_is_listed_a_strangers_and_a_broken_one_too(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    install("toy")
    install("broken", "import nowhere_to_be_found\n")
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} (" in f"\n{out}" for name in methods()) and "toy.pooled" in out and "nowhere_to_be_found" in out
    assert "moco_v2/imagenet_r50" in out and "moco.image" in out


def test_recipes_of_a_method_are_those_that_name_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names()
    assert main(["recipes", "moco"]) == 0
    found = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"moco/imagenet_r50", "moco_v2/quickstart", "multisiam/waymo_moco_r50"} <= set(found) < set(names()) and "simclr/quickstart" not in found
    assert main(["recipes", "moca"]) == 2
    assert "Did you mean 'moco'?" in capsys.readouterr().err


def test_a_method_is_said_in_a_sentence_and_counted_with_its_losses() -> None:
    found = {method.name: method for method in installed_methods("twinview")}
    assert found["moco"].about.startswith("MoCo (He et al. 2020") and found["moco"].about.endswith("averaged keys.")
    assert "simclr/imagenet_r50" in found["simclr"].recipes and not found["timm"].recipes
    assert all(method.about.endswith(".") and len(method.about) > 20 for method in found.values())
    assert first_sentence("""One of them, v. 2.0 (A et al. 2020).  Another.""") == "One of them, v. 2.0 (A et al. 2020)."


def test_the_table_is_written_between_the_marks_and_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(["methods", "--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| method |") and text.endswith(f"|\n{END}\nafter\n") and "\nold\n" not in text
    assert main(["methods", "--write", str(page)]) == 0
    assert page.read_text() == text
    capsys.readouterr()
    page.write_text("nothing")
    assert main(["methods", "--write", str(page)]) == 2 and page.read_text() == "nothing"
    assert main(["methods", "--write", str(tmp_path / "none.md")]) == 2
    assert [line.count("methods") > 0 for line in capsys.readouterr().err.splitlines()] == [True, True]
