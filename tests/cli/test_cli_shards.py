"""What `twinview shards` refuses leaves nothing behind."""
from __future__ import annotations

from pathlib import Path

import pytest

from twinview.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "0"], "--count: wants a number of at least 1, not 0."),
        (["--count", "-1"], "--count: wants a number of at least 1, not -1."),
        (["--seed", "-3"], "--seed: wants a number of at least 0, not -3."),
        (["--size", "16x240"], "--size: wants HEIGHTxWIDTH in pixels, each at least 32, for example 160x240, not '16x240'."),
    ],
)
def test_scenes_that_cannot_be_drawn(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "scenes", str(tmp_path / "out"), "--count", "1", "--size", "32x48", *words]) == 2
    assert capsys.readouterr().err == f"twinview: {said}\n"
    assert not list(tmp_path.iterdir())
