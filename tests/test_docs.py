"""What the documentation shows works, and it leaves no key of a recipe out."""
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from twinview.api import train
from twinview.assembly import assemble
from twinview.recipe import SLOTS, read
from twinview.recipe.tables import OPTIMIZERS, Data, Run, Schedule, Target

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_smallest_method_trains(toy: dict[str, Any], install: Callable[..., None], photo_shards: str, tmp_path: Path) -> None:
    text = (DOCS / "plugins.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "def parts" in block)
    assert 'acme = "twinview_acme"' in text
    install("acme", code)
    table = {**toy, "loss": [{"use": "acme.pooled", "width": 8}], "data": {"shards": photo_shards, "workers": 0}, "run": {**toy["run"], "device": "cpu"}}
    assert "acme.pooled" in assemble(read(table)).parts
    assert train(table, "run.steps=2", run=tmp_path / "run").step == 2


@pytest.mark.parametrize("table", [Target, Data, Schedule, Run, *OPTIMIZERS.values()])
def test_every_key_of_a_recipe_is_in_the_table(table: Any) -> None:
    text = (DOCS / "recipes.md").read_text()
    for f in attrs.fields(table):
        assert f"`{f.name}`" in text, f.name


def test_every_slot_is_in_the_table() -> None:
    text = (DOCS / "recipes.md").read_text()
    assert not [slot for slot in SLOTS if f"`[{slot}]`" not in text and f"`[[{slot}]]`" not in text]


def test_no_page_has_a_place_left_open() -> None:
    open_places = [f"{page.name}: {line}" for page in DOCS.glob("*.md") for line in page.read_text().splitlines() if re.fullmatch(r"[A-Z]{4,}", line.strip())]
    assert not open_places


def test_commands_in_the_docs_parse() -> None:
    from twinview.cli import parser

    found = [
        line.split("#")[0].split()[1:]
        for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("twinview ") and "..." not in line
    ]
    assert len(found) > 8
    for words in found:
        parser().parse_known_args([w.strip("'") for w in words])


def test_every_name_that_methods_share_is_in_the_table() -> None:
    from twinview import ops

    text = (DOCS / "plugins.md").read_text()
    assert not [name for name in ops.__all__ if f"`{name}`" not in text]
    assert not [name for name in ops.__all__ if not getattr(ops, name).__doc__]


def test_the_keys_that_may_change_stand_in_the_docs_as_in_the_code() -> None:
    from twinview.engine.resumable import table

    assert table() in (DOCS / "large-runs.md").read_text()
