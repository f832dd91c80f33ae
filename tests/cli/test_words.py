"""The words of the command line: nearly right ones, overrides written as options, broken pipes, control codes, and arguments named as options."""
from __future__ import annotations

import argparse
import ast
import logging
import os
from pathlib import Path

import pytest
from processes import Processes

from twinview import cli
from twinview.cli import main
from twinview.cli.words import in_options, tidied
from twinview.errors import DataError, TwinviewError
from twinview.terminal import one_line, printable

CORE = Path(__file__).resolve().parents[2] / "core" / "twinview"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "x"], "command: there is no 'trian'. Did you mean 'train'? There is: "),
        (["shards", "chek", "x"], "there is no 'chek'. Did you mean 'check'?"),
        (["train", "byol/camvid", "--stpes=3"], "unrecognized arguments: --stpes=3."),
        (["parts", "--instaled"], "unrecognized arguments: --instaled. Did you mean '--installed'?"),
        (["train"], "the following arguments are required: RECIPE"),
    ],
)
def test_a_word_that_is_nearly_right(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and said in err and err.count("\n") == 1 and err.startswith("twinview: ")


def test_overrides_written_as_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "byol/camvid", "evaluate=[]", "--run.steps=7"]) == 0
    assert "steps = 7" in capsys.readouterr().out
    assert main(["check", "byol/camvid", "--run.steps", "7"]) == 2
    assert capsys.readouterr().err == "twinview: --run.steps: keys of the recipe are no options. Write run.steps=7.\n"
    assert tidied(["train", "x", "--resume", "auto", "--run", "a.b"]) == ["train", "x", "--resume-auto", "--run", "a.b"]


@pytest.mark.parametrize("command", ["parts", "recipes", "check byol/camvid evaluate=[]"])
def test_a_reader_that_goes_away_is_no_fault(command: str, processes: Processes) -> None:
    """`twinview parts | head -1`, whose head has gone before the first line."""
    hear, speak = os.pipe()
    os.close(hear)
    try:
        done = processes.run(*command.split(), stdout=speak)
    finally:
        os.close(speak)
    assert (done.returncode, done.stderr) == (0, "")


def test_messages_speak_of_the_command_s_options() -> None:
    train = argparse.Namespace(answer="", recipe="", overrides=[], run=None, resume=False, ranks=1)
    assert in_options("x: holds a run. Write resume=True, or run=DIR.", train) == "x: holds a run. Write --resume, or --run DIR."
    pack = argparse.Namespace(answer="", source="", out="", bad_samples=0, workers=1)
    assert in_options("bad_samples: wants a number. See data.workers=0.", pack) == "--bad-samples: wants a number. See data.workers=0."
    assert in_options("x: write resume=True", None) == "x: write resume=True"
    assert in_options("run: is none", argparse.Namespace(answer="", run="r", what="knn")) == "run: is none"  # a place there, not an option


def test_control_codes_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("a\x1b[31m\x9b\u202e\x07\tb\n") == "a\\x1b[31m\\x9b\\u202e\\x07\tb\n" and one_line("a\nb") == "a\\nb"
    assert str(DataError("x\x1b]0;title\x07.jpg: is damaged.")) == "x\\x1b]0;title\\x07.jpg: is damaged."
    folder = tmp_path / "in\x1b[31m"
    folder.mkdir()
    (folder / "aa\x1b]0;title\x07.jpg").write_bytes(b"no image")
    for words in (["shards", "check", f"images:{folder}"], ["shards", "pack", "images", str(folder), str(tmp_path / "out")]):
        assert main(words) == 2
        said = capsys.readouterr()
        assert "\x1b" not in said.err + said.out and "\\x1b" in said.err + said.out


def test_nothing_prints_but_the_one_place() -> None:
    """What is foreign must pass through `twinview.terminal`; a bare print would let it through as it is."""
    found = [
        f"{path.relative_to(CORE)}:{node.lineno}"
        for path in CORE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and path.name != "terminal.py"
    ]
    assert found == []


def test_a_wrong_override_is_said_by_the_library_too() -> None:
    with pytest.raises(TwinviewError, match="keys of the recipe are no options"):
        tidied(["train", "x", "--views.size"])


def test_warnings_of_the_library_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    cli._Said().emit(logging.LogRecord("twinview.data", logging.WARNING, "", 0, "bad %s", ("a\x1b[31m",), None))
    assert capsys.readouterr().err == "bad a\\x1b[31m\n"
