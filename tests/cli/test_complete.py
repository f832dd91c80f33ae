"""Completion, help, and JSON of the commands that print tables."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from twinview.cli import main, parser
from twinview.cli.complete import SCRIPTS, candidates


def complete(line: str) -> list[str]:
    *before, word = line.split(" ")
    return candidates(parser(), before, word)


def test_what_the_shell_is_offered() -> None:
    assert complete("tr") == ["train"] and "shards" in complete("") and "completion" in complete("")
    assert complete("shards p") == ["pack"]
    assert complete("train simclr/q") == ["simclr/quickstart"]
    assert {"--ranks", "--resume", "--seeds"} <= set(complete("train simclr/quickstart --"))
    assert complete("export RUN OUT --to hug") == ["huggingface"] and complete("export RUN OUT --branch ") == ["online", "target"]
    assert complete("parts multi") == ["multisiam"] and complete("train --run ") == []  # a file
    assert complete("completion z") == ["zsh"] and complete("show r") == ["run"]
    assert not [name for name in complete("completion --") if name == "--words"]


def test_scripts_and_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in SCRIPTS:
        assert main(["completion", shell]) == 0
        assert "twinview completion --words" in capsys.readouterr().out
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert main(["completion"]) == 2
    assert "none for 'tcsh'" in capsys.readouterr().err
    assert main(["help", "shards", "pack"]) == 0
    assert "twinview shards pack" in capsys.readouterr().out
    assert main(["help"]) == 0 and "COMMAND" in capsys.readouterr().out
    for words, said in ((["help", "trian"], "Did you mean 'train'?"), (["help", "train", "x"], "no commands of its own")):
        assert main(words) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["trian"])
    assert end.value.code == 2 and "Did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes(tmp_path: Path) -> None:
    tool = tmp_path / "twinview"
    tool.write_text(f"#!/bin/sh\nexec {sys.executable} -m twinview \"$@\"\n")
    tool.chmod(0o755)
    script = f"PATH={tmp_path}:$PATH\n{SCRIPTS['bash']}\nCOMP_WORDS=(twinview shards pa)\nCOMP_CWORD=2\n_twinview\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split() == ["pack"]


def test_tables_come_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "simclr", "--json"]) == 0
    assert "simclr/quickstart" in json.loads(capsys.readouterr().out)
    assert main(["parts", "masks", "--json"]) == 0
    assert "options" in json.loads(capsys.readouterr().out)["masks"]["parts"]["masks.random"]
    assert main(["check", "simclr/quickstart", "evaluate=[]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"]["loss"][0]["use"] == "simclr.image" and "simclr.image" in found["answers"]["loss"]
