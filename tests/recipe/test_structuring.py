"""Values that TOML takes for something else, keys that stand in the wrong place, and what no recipe can hold: one line, and what to write."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from twinview.errors import RecipeError
from twinview.recipe import read

FAULTS: list[tuple[str, str]] = [
    ("run.keep_best=1979-05-27", "[run].keep_best: wants a string, not the date or time 1979-05-27. Quote it: \"1979-05-27\"; on the command line"),
    ("run.keep_best=5", "wants a string, not 5. Quote it: \"5\"; on the command line 'key=\"5\"'"),
    ("run.keep_best=true", "wants a string, not true. Quote it: \"true\""),
    ("data.shards=2024", "wants a string or a list of strings, not 2024. Quote it"),
    ("steps=100", "the recipe: nothing takes 'steps'. Did you mean run.steps?"),
    ("momentum=0.9", "Did you mean target.momentum or optimizer.momentum?"),
    ("optimizer.use=[1]", "[optimizer] use: no optimizer [1]."),
    ("loss.².weight=1", "'²' is no place in a list of 1."),
    (f"run.seed={'9' * 5000}", "holds a number or a date that nothing can hold"),
    (f"optimizer.lr={'9' * 400}", "and no number of the machine is as large as"),
    (f"data.mean={'[' * 20000 + ']' * 20000}", "is nested more than 100 deep"),
    ("run.steps=1\nrun.seed=2", "has more than one line. Write an override for each key."),
    ("run..steps=1", "'run..steps': is no key. An override is written table.key=value"),
    (f"{'a.' * 300}b=1", "is no key."),
    (f"run.device={'x' * 100000}", "wants one of 'auto', 'cpu', 'cuda', not "),
]


@pytest.mark.parametrize(("text", "said"), FAULTS, ids=[text[:30] for text, _ in FAULTS])
def test_a_word_that_nothing_can_take_is_one_short_line(toy: dict[str, Any], text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)) as caught:
        read(toy, [text])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbf" + Path(read_source()).read_bytes())
    assert read(path) == read("byol/camvid")


def read_source() -> Path:
    from twinview.recipe import find

    return find("byol/camvid")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[run]\nsteps = " + b"9" * 5000, "holds a number or a date that nothing can hold"),
        (b"x = " + b"[" * 5000 + b"]" * 5000, "is nested more than 100 deep"),
        (b"\xff\xfe\x00", "is no TOML: 'utf-8' codec"),
        (b"x = \x1b", "is no TOML: "),
    ],
)
def test_a_file_that_nothing_can_hold(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "odd.toml").write_bytes(data)
    with pytest.raises(RecipeError, match=re.escape(said)) as caught:
        read(tmp_path / "odd.toml")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
