"""The pytest plugin: a test for each check of each part of a package, by one mark."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from twinview.pytest_plugin import _cases

GOOD = '''
import torch
from twinview import hookimpl, part
@part
class Quiet:
    """Watches steps, and does nothing with them."""
    often: int = 1  # steps between two looks
    @hookimpl
    def after_step(self, step): ...
@part
class Bad:
    often: int = 1
    @hookimpl
    def after_step(self, step): ...
@hookimpl
def parts(): return {"quiet": Quiet, "bad": Bad}
'''


def test_a_check_of_a_part_is_a_test_of_its_own(install: Callable[..., None]) -> None:
    install("acme", GOOD)
    cases, ids = _cases("acme", {"options": {"quiet": {"often": 3}}, "skip": {"bad": {"documented": "why"}}}, "quick", "here")
    assert "acme.quiet-documented" in ids and "acme.bad-resumes" in ids and "acme.bad-documented" not in ids
    assert len(ids) == len(set(ids)) == len(cases) and "acme.quiet-several_ranks" not in ids
    assert cases[0].trial is cases[1].trial and cases[0].trial.subject.options == {"often": 3}
    assert "acme.quiet-several_ranks" in _cases("acme", {}, "whole", "here")[1]


@pytest.mark.parametrize(("given", "said"), [
    ({"option": {}}, "takes options, recipes and skip, not option"),
    ({"options": {"quite": {}}}, "acme has no part 'quite'"),
    ({"skip": {"quiet": {"docs": "why"}}}, "there is no check 'docs'"),
])
def test_a_wrong_mark_is_said(given: dict[str, dict[str, object]], said: str, install: Callable[..., None]) -> None:
    install("acme", GOOD)
    with pytest.raises(pytest.UsageError, match=said):
        _cases("acme", given, "quick", "here")


def test_it_runs_by_itself(install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    install("acme", GOOD)
    (tmp_path / "test_acme.py").write_text('import pytest\n@pytest.mark.twinview("acme")\ndef test_conforms(conform):\n    conform()\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-k", "documented or small", str(tmp_path / "test_acme.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "1 failed, 3 passed" in done.stdout, done.stdout
    assert "acme.bad: option often: got no comment behind it" in done.stdout and "Traceback" not in done.stdout
