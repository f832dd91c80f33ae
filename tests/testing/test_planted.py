"""The conformance kit finds each of these mistakes, and nothing in the parts that they were made in; docs/conformance.md has the line for each."""
from __future__ import annotations

import os
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinview.errors import TwinviewError
from twinview.testing import ConformanceError, Failure, Setting, conformance
from twinview.testing.conform import checks_of, failures_of
from twinview.testing.failure import refused
from twinview.testing.trial import Trial

PLANTED: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("planted.py")))
MISTAKES = PLANTED["MISTAKES"]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
BEGIN, END = "<!-- mistakes: written by tests/testing/test_planted.py where TWINVIEW_WRITE is set -->", "<!-- end of mistakes -->"
SAID: dict[str, str] = {}  # mistake -> its row of the page


@pytest.fixture(autouse=True)
def right(install: Callable[..., None]) -> None:
    install("right", PLANTED["RIGHT"])


def first_failures(part: str, slow: str = "") -> tuple[str, list[Failure]]:
    """The first check that fails, and what it says; of those that take a minute, `slow` alone is made."""
    try:
        trial = Trial(part, {}, Setting(extent="whole"))
    except TwinviewError as e:
        return "parts", [refused(part, e, "parts")]
    for check in checks_of(trial.subject):
        if (check.extent == "quick" or check.name == slow) and (found := failures_of(trial, check)):
            return check.name, found
    return "", []


@pytest.mark.parametrize("kind", ["loss", "views", "augment", "masks", "encoder", "align", "evaluate"])
def test_the_right_parts_pass(kind: str) -> None:
    conformance(f"right.{kind}")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str, install: Callable[..., None]) -> None:
    mistake = MISTAKES[name]
    install("planted", PLANTED["source"](mistake))
    check, found = first_failures("planted.part", mistake.check)
    assert check == mistake.check, found
    assert found[0].part == "planted.part" and found[0].got and found[0].wanted
    assert not mistake.hook or found[0].hook == mistake.hook, found
    line = re.sub(r"\([^() ]*/(twinview_\w+\.py)", r"(\1", str(found[0])).replace("|", "\\|").replace("planted.part", f"acme.{mistake.kind}")
    mark = "``" if "`" in line else "`"
    pad = " " if line.endswith("`") else ""
    SAID[name] = f"| {name} | {check} | {mark}{line}{pad}{mark} |"


def test_all_of_them_stand_in_the_page() -> None:
    assert len(MISTAKES) >= 40
    if len(SAID) < len(MISTAKES):
        pytest.skip("not all mistakes were made in this session")
    table = "\n".join(["| mistake | check | what is said |", "|---|---|---|", *(SAID[name] for name in MISTAKES)])
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    page = f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"
    if os.environ.get("TWINVIEW_WRITE"):
        PAGE.write_text(page)
    assert without_numbers(PAGE.read_text()) == without_numbers(page)


def without_numbers(text: str) -> str:
    """Losses differ in their last digits from one machine to another."""
    return re.sub(r"\d+(\.\d+)?", "#", text)


def test_one_line_is_all_that_a_package_needs(install: Callable[..., None]) -> None:
    conformance("right.loss", queue=24)
    with pytest.raises(ConformanceError, match="Did you mean 'queue'"):
        conformance("right.loss", quueue=3)
    with pytest.raises(ConformanceError, match="no part 'lss'"):
        conformance("right.lss")
    with pytest.raises(ValueError, match="there is no check 'nothing'"):
        conformance("right.loss", Setting(skip={"nothing": "why"}))
